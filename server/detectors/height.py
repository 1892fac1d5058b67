"""The height of a spike that has not come: how far the loss is expected to rise, and whether that is a mere ripple.

Owns the forecast of the height and its correction by the run's own earlier spikes.

A spike of Adam's mechanism ends when the growing gradient has raised v. At that time Σg² is a few times Σv̂, so that the
direction holds a few times the loss that it would hold at Σg² = Σv̂ (`Reading.memory_loss`), which needs no curvature.
The factor was 5 in the median on recorded runs with a squared error, for β2 from 0.98 to 0.9999 and up to twenty steps
ahead. A faster v ends the growth sooner: it must grow by r² for λ_max at r times the limit to fall below it, and each
step adds (1−β2)·g², so that the factor is at most (r²−1)/(1−β2). Where the loss is not quadratic so far out, as with a
cross-entropy, the factor is larger, but stays what it is within a run: that of the run's own spikes corrects it.

>>> record = HeightRecord()
>>> for step in range(1, 40):
...     record.update(Reading(step=step, loss=1.0, memory_loss=0.5), is_jumping=False)
>>> record.forecast()
Height(low=0.8333333333333334, best=2.5, high=7.5)
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from server.detectors.robust import RecentValues, median
from server.detectors.signals import Reading

FACTOR: Final = 5.0
"""Ratio of a spike's height to the memory loss (measured: median 4.5 to 6, quartiles 3 and 10 with a squared error)."""
OVERSHOOT: Final = 0.05
"""Usual r² − 1 at a spike, which bounds the factor by `OVERSHOOT`/(1−β2)."""
SPREAD: Final = 3.0
"""Factor by which the height may be larger or smaller before the run had a spike (three quarters were within it)."""
OWN_SPREAD: Final = 2.0
"""Least such factor after spikes of the run itself."""
PRIOR_WEIGHT: Final = 0.5
"""Number of the run's own spikes that the usual factor counts for."""
SMOOTHING: Final = 0.8
"""Decay per record of the average of log(memory loss)."""
WINDOW: Final = 40
"""Number of losses that the level is the median of."""
RIPPLE: Final = 0.3
"""Expected rise of the loss relative to its level below which it is a ripple, and no reason for a warning."""
SPIKE: Final = 0.2
"""Rise of the loss relative to its level from which a jump teaches the factor of the run."""
MAX_MISSES: Final = 6
"""Number of such warnings that are counted at most."""
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
    count: int = 0
    """Number of the run's own spikes so far."""
    total: float = 0.0
    """Sum of the logarithms of their factors."""
    misses: int = 0
    """Number of warnings since the last spike after which none came."""

    def update(self, reading: Reading, *, is_jumping: bool) -> None:
        """Add one reading, and whether a jump of the loss is in progress."""
        loss = reading.loss
        if loss is not None and math.isfinite(loss):
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

    def _learn(self) -> None:
        """Learn the factor of a jump that has just ended, if it was a spike."""
        if not self.is_inside:
            return
        self.is_inside = False
        level = median(self.losses.values)
        rise = self.peak - level
        if self.memory is not None and rise > max(SPIKE * abs(level), 0.0):
            self.misses = 0
            self.count += 1
            self.total += math.log(rise) - self.memory

    def note_miss(self) -> None:
        """Halve the expected height after a warning that passed without a spike."""
        self.misses = min(self.misses + 1, MAX_MISSES)

    def forecast(self) -> Height | None:
        """Return the height of a spike that builds up now; None where the second moment or the level is unknown."""
        level = abs(median(self.losses.values))
        if self.memory is None or not level > 0:
            return None
        usual = math.log(min(FACTOR, OVERSHOOT / max(1.0 - self.beta2, 1e-9)))
        factor = (PRIOR_WEIGHT * usual + self.total) / (PRIOR_WEIGHT + self.count)
        factor -= math.log(2.0) * self.misses
        spread = SPREAD if not self.count else max(OWN_SPREAD, SPREAD ** (1 / math.sqrt(self.count)))
        best = math.exp(min(max(self.memory + factor - math.log(level), -LARGEST), LARGEST))
        return Height(low=best / spread, best=best, high=best * spread)

    @property
    def is_ripple(self) -> bool:
        """Whether the expected rise is so small compared to the loss that nobody needs a warning."""
        expected = self.forecast()
        return expected is not None and expected.best < RIPPLE
