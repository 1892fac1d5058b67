"""The period-two component of the gradient: the sign of an instability that needs no curvature, with height and date.

Owns what follows from the share and the growth of the component, which the SDK logs; the predictor decides what it
means for the run.

The first instability of gradient descent has period two. Along an unstable direction the gradient changes its sign at
every step and grows by a factor ρ a step, which is `period_two_growth`, the slope of log‖e‖. From it follow:

* the *share* s of the present gradient that alternates. A gradient that alternates and grows by ρ has a component of
  `full_share(ρ)` of the filter's level, because the filter and its level lag behind by different amounts;
* the *stability ratio* r = λ/limit = (ρ + 1 + β1 + β1/ρ)/(2·(1+β1)), from the polynomial of the momentum;
* the *held loss* c²/(2λ) = s·(Σg²/Σv̂)·(memory loss), the loss that the direction holds now (`Reading.memory_loss`);
* the *peak*: v must grow by r² for λ to fall to the limit. A sum of g² with the ratio ρ² feeds it with the weight 1−β2,
  so that the growth ends at s·Σg²/Σv̂ = (r²−1)·(1−ρ⁻²)/(1−β2), with that many times the memory loss;
* the *date*: the steps until the held loss, which grows by ρ² a step, is a rise that counts.

Source: Cohen et al. 2022 (arXiv 2207.14484) for r; docs/explanation/science.md, "Without curvature".

>>> round(stability_ratio(0.1, beta1=0.9), 4), round(peak_decoupling(0.1, beta1=0.9, beta2=0.999), 2)
(1.0051, 1.87)
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from server.detectors.robust import RecentPoints
from server.detectors.signals import Reading

DECAY: Final = 0.8
"""Decay per step of the filter by which the SDK finds the component."""
WINDOW: Final = 12
"""Number of steps that the SDK measures the growth over; the growth is that of their middle."""
LOOKBACK: Final = 5
"""Number of measurements over which the change of the growth is measured."""
LARGEST: Final = 3.0
"""Largest growth of log‖e‖ per step that is reckoned with; e³ a step is a spike that is there."""
GROWING: Final = 0.04
"""Growth of log‖e‖ per step from which the component builds up."""
SLOWEST: Final = 0.02
"""Growth per step now, below which the growth has ended."""
ALTERNATING: Final = 0.4
"""Share of the gradient that must alternate; in noise it is 1/9."""
STEADY: Final = 0.25
"""Share of the gradient below which its growth comes from elsewhere, such as a batch or a drift."""
LAGGING: Final = 1.0
"""Value of Σg²/Σv̂ below which v lags behind the gradient; above it v catches up."""
THINNED: Final = 16
"""Number of steps for which a measured Σg²/Σv̂ counts; with `every="auto"` the SDK measures the layers so often."""
MOST_ACCELERATION: Final = 0.1
"""Largest change of the growth per step that is extrapolated."""


def full_share(growth: float) -> float:
    """Return the square of `period_two` for a gradient that only alternates and grows by exp(`growth`) a step.

    With y_t = (−ρ)^t the component is (1−β)/(1−β/ρ)·|y_t| and its level (1−β)/(1−β/ρ²)·y_t².

    >>> full_share(0.0)
    1.0
    """
    rho = math.exp(min(max(growth, 0.0), LARGEST))
    return (1.0 - DECAY) * (1.0 - DECAY / rho**2) / (1.0 - DECAY / rho) ** 2


def stability_ratio(growth: float, beta1: float) -> float:
    """Return λ over the limit of a direction whose gradient grows by exp(`growth`) a step and alternates."""
    rho = math.exp(min(max(growth, 0.0), LARGEST))
    return (rho + 1.0 + beta1 + beta1 / rho) / (2.0 * (1.0 + beta1))


def peak_decoupling(growth: float, beta1: float, beta2: float) -> float:
    """Return Σg²/Σv̂ along the direction at which v̂ has grown enough to end the growth."""
    ratio = stability_ratio(growth, beta1)
    rho = math.exp(min(max(growth, 0.0), LARGEST))
    return (ratio**2 - 1.0) * (1.0 - rho**-2) / max(1.0 - beta2, 1e-9)


def is_steady(reading: Reading) -> bool:
    """Return whether the gradient is known not to alternate, so that what makes it grow is no first instability.

    >>> is_steady(Reading(step=1)), is_steady(Reading(step=1, period_two=0.2, period_two_growth=0.1))
    (False, True)
    """
    if reading.period_two is None or reading.period_two_growth is None:
        return False
    return min(reading.period_two, 1.0) ** 2 < STEADY * full_share(reading.period_two_growth)


class Swing(msgspec.Struct, frozen=True, kw_only=True):
    """The period-two component at one step, and what its growth says."""

    growth: float
    """Growth of log‖e‖ per step over the last 12 steps."""
    speed: float
    """Growth per step now: the growth plus what it has gained since the middle of these steps; not below 0."""
    share: float
    """Share of the preconditioned gradient's square that alternates, between 0 and 1."""
    decoupling: float | None
    """Σg²/Σv̂ where it was last measured; None without second moments."""
    held: float | None
    """Loss that the alternating direction holds now; None without second moments."""
    peak: float | None
    """Loss that it holds when v has caught up, if the growth goes on as it is; None without second moments."""

    def builds_up(self, usual: float) -> bool:
        """Return whether the gradient alternates and grows, by more than `usual` a step, before v follows it."""
        if self.growth <= max(GROWING, usual) or self.speed <= SLOWEST or self.share <= ALTERNATING:
            return False
        return self.decoupling is not None and self.decoupling < LAGGING

    def steps_until(self, rise: float) -> float | None:
        """Return the number of steps until the direction holds `rise` of the loss; None if it does not grow.

        >>> Swing(growth=0.1, speed=0.1, share=1.0, decoupling=0.1, held=0.01, peak=1.0).steps_until(0.01)
        0.0
        """
        if self.held is None or self.held <= 0.0 or rise <= 0.0 or self.speed <= 0.0:
            return None
        return max(0.5 * math.log(rise / self.held), 0.0) / self.speed


class PeriodTwo(msgspec.Struct):
    """The recent growth of the period-two component of one run."""

    growths: RecentPoints = msgspec.field(default_factory=lambda: RecentPoints(LOOKBACK))
    """Latest values of `period_two_growth`."""
    decoupling: float | None = None
    """Last measured Σg²/Σv̂."""
    measured: int = 0
    """Step at which it was measured."""

    def update(self, reading: Reading, memory: float | None, beta2: float) -> Swing | None:
        """Add one reading and return what it says; None where the component is not measured.

        `memory` is the logarithm of the memory loss, None without second moments.
        """
        decoupling = self._decoupling(reading)
        growth, alternating = reading.period_two_growth, reading.period_two
        if growth is None or alternating is None:
            return None
        self.growths.push(reading.step, growth)
        share = min(min(alternating, 1.0) ** 2 / full_share(growth), 1.0)
        held = peak = None
        if memory is not None and decoupling is not None:
            whole = math.exp(min(memory, 700.0))
            held = whole * decoupling * share
            peak = whole * peak_decoupling(growth, reading.beta1, beta2)
        return Swing(
            growth=growth,
            speed=self._speed(growth),
            share=share,
            decoupling=decoupling,
            held=held,
            peak=peak,
        )

    def _decoupling(self, reading: Reading) -> float | None:
        """Return Σg²/Σv̂ of this step, or the last measured one where the layers of some steps are left out."""
        if reading.decoupling is not None:
            self.decoupling, self.measured = reading.decoupling, reading.step
        return self.decoupling if reading.step - self.measured <= THINNED else None

    def _speed(self, growth: float) -> float:
        """Return the growth at this step, from the growth of the last 12 steps and its own change."""
        steps, values = self.growths.steps, self.growths.values
        passed = steps[-1] - steps[0]
        change = (growth - values[0]) / passed if 0 < passed <= 2 * LOOKBACK else 0.0
        change = min(max(change, -MOST_ACCELERATION), MOST_ACCELERATION)
        return min(max(growth + change * (WINDOW - 1) / 2, 0.0), LARGEST)
