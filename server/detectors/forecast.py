"""The date of a spike: from the growth of a decoupled gradient, the trend of λ_max through the limit, and theory.

Owns the arithmetic of the date; does not decide whether there is anything to forecast.

The loss jumps when the growing direction of the gradient has become as large as √v̂ remembers, RMS_t ≈ 1. Until then
log‖g‖ has −½·log(Σg²/Σv̂) to climb. The rate of that climb is the observed slope of log‖g‖ now; it rises while λ_max
keeps rising above the limit, as the characteristic polynomial of Adam's momentum says (`theoretical_growth`).
Dividing by the present slope alone dates the spike late, because the growth accelerates.
"""

from __future__ import annotations

import math
from typing import Final

from server.detectors.signals import Reading
from server.models import PredictedStep

HORIZON: Final = 400
"""Steps ahead beyond which no date is given."""
CLIMBING: Final = 0.02
"""Slope of log‖g‖ a step below which growth is not told from noise."""
FITTING: Final = 0.4
"""Share of the variance of log‖g‖ that its slope must explain to count as growth."""
HIDDEN: Final = 8.0
"""Depth of the climb that doubles the time from the crossing to the spike while no growth is seen: the growing
direction hides under the noise of ‖g‖, and an update below the resolution of the weights does not grow (measured: 2–3
× at 14)."""
ACCELERATION: Final = 0.67
"""Real over naive remaining steps where nothing but the slope is known (measured: 16 for 24)."""
EARLIEST, LATEST = 0.5, 1.8
"""Band of a date from observed growth, in units of the remaining steps."""
EARLIEST_TREND, LATEST_TREND = 0.5, 1.8
"""The same for a date from the trend of λ_max alone."""
SLACK: Final = 4
"""Steps that the band is wider at its late end, whatever the date."""


def theoretical_growth(ratio: float, beta1: float) -> float:
    """Growth of log‖g‖ a step along a direction whose curvature is `ratio` × the limit 2/η.

    Along an eigenvector, momentum makes θ a recurrence of second order with the characteristic polynomial
    z² + (1+β1)(2·ratio − 1)·z + β1 = 0; at ratio 1 its largest root is −1, and above it the oscillation grows by
    log|z| a step (Cohen et al. 2022, arXiv 2207.14484, section 2).

    >>> theoretical_growth(1.0, 0.9)
    0.0
    >>> round(theoretical_growth(1.01, 0.9), 3)
    0.154
    """
    if ratio <= 1.0:
        return 0.0
    trace = (1.0 + beta1) * (2.0 * min(ratio, 1e6) - 1.0)
    return math.log(0.5 * (trace + math.sqrt(max(trace * trace - 4.0 * beta1, 0.0))))


def remaining_climb(reading: Reading) -> float | None:
    """What log‖g‖ has yet to grow until RMS_t ≈ 1; None without second moments."""
    if reading.decoupling is None:
        return None
    return max(0.5 * math.log(1.0 / reading.decoupling), 0.0)


def crossing_step(reading: Reading) -> int | None:
    """Step at which λ_max crossed the limit, or at which the trend of its logarithm will.

    None unless it has crossed, or rises and gets there within the horizon.
    """
    if reading.stability is None:
        return None
    if reading.above_steps > 0:
        return reading.step - reading.above_steps + 1
    if reading.stability_growth <= 0:
        return None
    steps = -math.log(max(reading.stability, 1e-12)) / reading.stability_growth
    return reading.step + math.ceil(max(steps, 0.0)) if steps <= HORIZON else None


def forecast(reading: Reading) -> PredictedStep | None:
    """When the spike is expected, as the evidence stands now; None where the evidence gives no date."""
    climb = remaining_climb(reading)
    if climb is None:
        return None
    told = reading.growth_fit > FITTING or reading.grad_ratio > 1.2
    observed = reading.growth if reading.growth > CLIMBING and told else 0.0
    curved = reading.stability is not None and reading.stability_growth > 0
    if not observed and not curved:
        return None
    steps = _steps_to_climb(reading, climb, observed)
    if steps is None:
        return None
    if observed:
        steps = min(steps, ACCELERATION * climb / observed)
        low, high = EARLIEST * steps, LATEST * steps
    else:
        crossing = crossing_step(reading)
        before = 0.0 if crossing is None else min(max(float(crossing - reading.step), 0.0), steps)
        steps = before + (steps - before) * (1.0 + climb / HIDDEN)
        low, high = EARLIEST_TREND * steps, LATEST_TREND * steps
    if steps > HORIZON:
        return None
    best = max(1, round(steps))
    return PredictedStep(
        low=reading.step + max(1, min(math.floor(low), best)),
        best=reading.step + best,
        high=reading.step + math.ceil(high) + SLACK,
    )


def _steps_to_climb(reading: Reading, climb: float, observed: float) -> float | None:
    """Steps until the summed growth reaches `climb`; growth is what is observed plus what the rise of λ_max adds."""
    ratio = reading.stability if reading.stability is not None else 0.0
    start = theoretical_growth(ratio, reading.beta1)
    factor = math.exp(min(max(reading.stability_growth, 0.0), 0.05))
    total = 0.0
    for ahead in range(1, HORIZON + 1):
        ratio *= factor
        total += observed + max(theoretical_growth(ratio, reading.beta1) - (start if observed else 0.0), 0.0)
        if total >= climb:
            return float(ahead)
    return None
