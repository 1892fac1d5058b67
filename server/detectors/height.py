"""The height of a spike that has not come: how far the loss is expected to rise, and whether that is a mere ripple.

Owns the forecast of the height and its correction by the run's own earlier spikes.

A spike of Adam's mechanism ends when the growing gradient has raised v so far that λ_max falls below the limit: for
λ_max at r times the limit, v must grow by r². A geometric series of g², whose amplitude grows by ρ a step, feeds it.
So at the peak the unstable direction holds a loss in proportion to (r²−1)·(1−ρ⁻²) and to the loss that it would hold
at Σg² = Σv̂ (`Reading.memory_loss`). r is taken where its trend will have brought it at the onset, and ρ is what
theory gives for it. One constant is fitted (docs/explanation/forecast.md); without λ_max the whole factor is a
constant. The run's own spikes correct both.

>>> record = HeightRecord()
>>> for step in range(1, 40):
...     record.update(Reading(step=step, loss=1.0, memory_loss=0.5), is_jumping=False)
>>> round(record.forecast().best, 2)
2.75
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from server.detectors.calibration import FACTOR, REACH
from server.detectors.forecast import theoretical_growth, trend
from server.detectors.robust import RecentValues, median, median_and_spread
from server.detectors.signals import Reading

FASTEST_FACTOR, FASTEST_REACH = 0.1, 2.7
"""Largest such ratios times 1−β2: a v that forgets fast follows the gradient at once."""
LEAST_EXCESS: Final = 1.02
"""Least ratio r to the limit at a spike, as λ_max may have been measured some steps ago."""
MOST_EXCESS: Final = 10.0
"""Largest ratio r that is believed."""
EXTRAPOLATED: Final = 20
"""Number of steps for which the trend of λ_max is continued at most."""
SPREAD: Final = 3.0
"""Factor by which the height may be larger or smaller before the run had a spike (three quarters were within it)."""
OWN_SPREAD: Final = 2.0
"""Least such factor after spikes of the run itself."""
MOST_CORRECTED: Final = 3.5
"""Largest logarithm by which one spike may differ from what was expected."""
PRIOR_WEIGHT: Final = 3.0
"""Number of the run's own spikes that the usual factor counts for."""
SMOOTHING: Final = 0.8
"""Decay per record of the average of log(memory loss)."""
WINDOW: Final = 40
"""Number of losses that the level is the median of."""
RIPPLE: Final = 0.6
"""Expected rise of the loss relative to its level below which it is a ripple, and no reason for a warning."""
ONSET_NOISE: Final = 3.0
"""Rise of a spike's first loss in robust standard deviations of the losses before it."""
MULTIPLE, LEAST = 2.0, 5e-4
"""Expected rise of a small loss that is worth a warning of the alternating part, relative to its level, and the least
one relative to the run's first losses; a height may be forecast half too low."""
MARGIN: Final = 0.25
"""Expected rise in units of the one that counts from which a warning is due, as the height is known within a factor."""
ONSET_RISE: Final = 0.05
"""Rise of a spike's first loss relative to the level."""
SMALL_RISE: Final = 0.01
"""Rise relative to the run's first losses that counts, however large it is relative to the level."""
NEGLIGIBLE: Final = 1e-3
"""Rise relative to the run's first losses that never counts."""
LATEST: Final = 5
"""Number of losses whose median is where the loss is now, as a falling loss is below its level."""
SPIKE: Final = 0.2
"""Rise of the loss relative to its level from which a jump forgives earlier warnings after which none came."""
MAX_MISSES: Final = 6
"""Number of such warnings that are counted at most."""
FIRST: Final = 3
"""Number of first losses that the scale is taken from."""
LARGEST: Final = 700.0
"""Largest logarithm whose exponential is finite."""


class Height(msgspec.Struct, frozen=True, kw_only=True):
    """The expected rise of the loss, with its interval, in units of the loss's level."""

    low: float
    best: float
    high: float


class HeightRecord(msgspec.Struct):
    """The level of the loss, the memory loss, and the factors of the run's earlier spikes."""

    losses: RecentValues = msgspec.field(default_factory=lambda: RecentValues(WINDOW))
    """Latest losses outside jumps."""
    memory: float | None = None
    """Average of log(memory loss) outside jumps; None where the second moment is not measured."""
    beta2: float = 0.999
    """Decay of the second moment."""
    is_inside: bool = False
    """Whether a jump of the loss is in progress."""
    peak: float = 0.0
    """Largest loss of the jump in progress."""
    usual: float = math.log(FACTOR)
    """Logarithm of the usual ratio of a spike's height to the memory loss, in the last state outside jumps."""
    claim: float | None = None
    """Logarithm of the rise that the present build-up let one expect at its first sign; None outside one."""
    spikes: int = 0
    """Number of the run's own spikes so far that a build-up preceded."""
    correction: float = 0.0
    """Sum of the logarithms of their heights relative to what was usual."""
    misses: int = 0
    """Number of warnings since the last spike after which none came."""
    scale: float = 0.0
    """Largest of the run's first three losses; 0 before them."""
    seen: int = 0
    """Number of finite losses among them."""

    def update(self, reading: Reading, *, is_jumping: bool) -> None:
        """Add one reading, and whether a jump of the loss is in progress."""
        loss = reading.loss
        if loss is not None and math.isfinite(loss):
            if self.seen < FIRST:
                self.seen, self.scale = self.seen + 1, max(self.scale, abs(loss))
            if is_jumping:
                self.peak = max(self.peak, loss) if self.is_inside else loss
                self.is_inside = True
            else:
                self._learn()
                self.losses.push(loss)
        if reading.memory_loss is None:
            return
        beta2 = None if reading.optimizer is None else reading.optimizer.beta2
        self.beta2 = self.beta2 if beta2 is None else beta2
        if not is_jumping:
            now = math.log(reading.memory_loss)
            self.memory = now if self.memory is None else SMOOTHING * self.memory + (1 - SMOOTHING) * now

    def take_losses(self, losses: Sequence[float], scale: float) -> None:
        """Take the latest losses and the level of the first ones from elsewhere, if a version before kept none here."""
        if not self.seen and scale > 0.0:
            self.seen, self.scale = FIRST, scale
            self.losses.values = [*losses][-WINDOW:]

    def _learn(self) -> None:
        """Learn from a jump that has just ended and that a build-up preceded, whether it was a spike or a ripple."""
        if not self.is_inside:
            return
        self.is_inside = False
        level = median(self.losses.values)
        rise = self.peak - level
        if rise > max(SPIKE * abs(level), 0.0):
            self.misses = 0
        if self.claim is not None and rise > 0.0:
            self.spikes += 1
            self.correction += min(max(math.log(rise) - self.claim, -MOST_CORRECTED), MOST_CORRECTED)
        self.claim = None

    def note_sign(self) -> None:
        """Note that a build-up shows a sign; what its first one lets one expect is compared to what comes."""
        if self.claim is None and self.memory is not None:
            self.claim = self.memory + self.usual

    def note_end(self) -> None:
        """Note that the build-up is over without a jump of the loss."""
        self.claim = None

    def note_state(self, reading: Reading, ahead: int) -> None:
        """Take the usual height from the ratio to the limit that λ_max will have ``ahead`` steps from now."""
        memory = max(1.0 - self.beta2, 1e-9)
        factor = min(FACTOR, FASTEST_FACTOR / memory)
        if reading.stability is not None:
            rise = trend(reading) * min(ahead, EXTRAPOLATED)
            ratio = min(max(reading.stability, LEAST_EXCESS) * math.exp(rise), MOST_EXCESS)
            growth = theoretical_growth(ratio, reading.beta1)
            factor = min(REACH, FASTEST_REACH / memory) * (ratio * ratio - 1.0) * -math.expm1(-2.0 * growth)
        self.usual = math.log(factor)

    def note_miss(self) -> None:
        """Halve the expected height after a warning that passed without a spike."""
        self.misses = min(self.misses + 1, MAX_MISSES)

    def forecast(self) -> Height | None:
        """Return the height of a spike that builds up now; None where the second moment or the level is unknown."""
        level = abs(median(self.losses.values))
        if self.memory is None or not level > 0:
            return None
        factor = self.usual + self.correction / (PRIOR_WEIGHT + self.spikes) - math.log(2.0) * self.misses
        spread = SPREAD if not self.spikes else max(OWN_SPREAD, SPREAD ** (1 / math.sqrt(self.spikes)))
        best = math.exp(min(max(self.memory + factor - math.log(level), -LARGEST), LARGEST))
        return Height(low=best / spread, best=best, high=best * spread)

    def onset_floor(self) -> float:
        """Return the rise of the loss above its level with which a spike begins."""
        level, spread = median_and_spread(self.losses.values)
        return max(ONSET_NOISE * spread, ONSET_RISE * abs(level), NEGLIGIBLE * self.scale)

    def onset_rise(self) -> float | None:
        """Return by how much the loss must rise from where it is now until that counts as the onset of a spike.

        None while the level of the loss is unknown.
        """
        losses = self.losses.values
        if len(losses) < LATEST:
            return None
        rise = median(losses) - median(losses[-LATEST:]) + self.onset_floor()
        return rise if 0.0 < rise < math.inf else None

    def warning_rise(self) -> float:
        """Return the expected rise of the loss from which an alternation is worth a warning without curvature.

        It is a share of the level and of the run's first losses, as a rise from 1e-14 to 1e-6 means nothing to a run
        that began at 1. Where the loss has fallen that far, a multiple of the level is enough.
        """
        level = abs(median(self.losses.values))
        return min(max(RIPPLE * level, SMALL_RISE * self.scale), max(MULTIPLE * level, LEAST * self.scale))

    def falls_below(self, share: float) -> bool:
        """Return whether the latest losses are below this share of the median of the last 40."""
        losses = self.losses.values
        return len(losses) >= LATEST and median(losses[-LATEST:]) < share * median(losses)

    @property
    def is_ripple(self) -> bool:
        """Whether the expected rise is too small to be a spike, so that nobody needs a warning.

        It is, if it is small compared to the loss, or to the first losses of the run.
        """
        expected = self.forecast()
        if expected is None:
            return False
        level = abs(median(self.losses.values))
        counted = min(max(level, SMALL_RISE * self.scale), max(2.0 * level, NEGLIGIBLE * self.scale))
        return expected.best * level < max(RIPPLE * level, MARGIN * counted)
