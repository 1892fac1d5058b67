"""A jump of the loss far above its last 40 values: what a prediction claims, and what makes another one pointless.

Rule: with m and s the median and 1.4826·MAD of the last 40 losses outside jumps, a loss is *high* above
m + max(6 s, 1 % of m, 10⁻⁴ of the run's first loss). A jump begins when two of three losses are high, or at once when
one loss is above m + max(12 s, 50 % of m, the same floor). It ends when three losses in a row are back within a quarter
of the peak, or after 150 records. Its level is a watch for a small one (below 20 % of m and 25 s), critical for a rise
above the run's first losses, otherwise warning.

This is the definition of a spike by which predictions are scored (`server.evaluation.labels`), so predictions are
settled by it. It needs logs of every step, and a level that does not fall. The alerts about spikes follow the more
sensitive rule of `server.detectors.spike`.

>>> detector = JumpDetector()
>>> for step in range(50):
...     detector.update(Reading(step=step, loss=1.0 + 0.001 * (step % 3)), Context())
>>> detector.active
False
>>> detector.update(Reading(step=50, loss=3.0), Context())
>>> detector.active
True
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from server.detectors.context import Context
from server.detectors.robust import RecentValues, median, median_and_spread
from server.detectors.signals import Reading
from server.models import AlertLevel

WINDOW: Final = 40
"""Number of losses in the median."""
MIN_LOSSES: Final = 10
"""Number of losses before which nothing is judged."""
HIGH, VERY_HIGH = 6.0, 12.0
"""Rises of the loss in robust standard deviations."""
RISE, STEEP_RISE = 0.01, 0.5
"""Rises of the loss relative to the median."""
FLOOR: Final = 1e-4
"""Rise of the loss relative to the first losses of the run, below which it is numerically negligible."""
LONGEST: Final = 150
"""Number of records after which a jump ends and its level becomes the new one."""
BACK: Final = 0.25
"""Share of the peak's height under which the loss is back."""


class JumpDetector(msgspec.Struct):
    """Detector of jumps of the loss, which settle predictions."""

    losses: RecentValues = msgspec.field(default_factory=lambda: RecentValues(WINDOW))
    """Recent losses outside jumps."""
    scale: float = 0.0
    """Level of the run's first losses."""
    seen: int = 0
    """Number of finite losses so far."""
    active: bool = False
    """Whether a jump is in progress, from the step at which it was recognised."""
    trigger: int = 0
    """Step at which the jump was recognised."""
    peak: float = 0.0
    """Largest loss of the jump."""
    baseline: float = 0.0
    """Median of the losses before the jump."""
    deviation: float = 0.0
    """Robust standard deviation of the losses before the jump."""
    back: int = 0
    """Number of the latest consecutive losses that are back within a quarter of the peak."""
    high: list[bool] = []
    """Whether each of the last three losses was high."""
    settling: list[float] = []
    """Losses since the jump began, from which the level after it is learnt."""
    tail_until: int | None = None
    """Step at which the decay after a jump is given up and its level learnt; None outside such a tail."""

    def update(self, reading: Reading, context: Context) -> None:
        """Add one reading."""
        step, loss = reading.step, reading.loss
        if loss is not None and math.isfinite(loss):
            self.seen += 1
            if self.seen <= 3:
                self.scale = max(self.scale, abs(loss))
            if self.active:
                self._inside(step, loss, reading.loss_interval)
            else:
                self._outside(step, loss)
        context.is_jumping = self.active
        if self.active:
            context.jump_level = self._level()

    def finding(self, reading: Reading, context: Context) -> None:
        """Report no finding, because the spike detector reports what happens to the loss."""
        del reading, context

    def _level(self) -> AlertLevel:
        rise = self.peak - self.baseline
        is_tall = rise > 0.2 * abs(self.baseline) or (self.deviation > 0 and rise > 25 * self.deviation)
        if not is_tall or rise <= 1e-3 * self.scale:
            return AlertLevel.WATCH
        return AlertLevel.CRITICAL if rise > self.scale else AlertLevel.WARNING

    def _outside(self, step: int, loss: float) -> None:
        """Add a loss while the loss is not up, and begin a jump if it is high enough."""
        in_tail = self._in_tail(step, loss)
        values = self.settling if in_tail else self.losses.values
        if len(values) >= (3 if in_tail else MIN_LOSSES):
            self.baseline = median(values)
            level = abs(self.baseline)
            floor = FLOOR * self.scale
            rise = loss - self.baseline
            is_up = rise > max(RISE * level, floor)
            # Most losses are not up at all, and need no deviation of the others.
            self.deviation = median_and_spread(values)[1] if is_up else 0.0
            caution = 2.0 if not in_tail and len(values) < WINDOW // 2 else 1.0
            is_high = is_up and rise > caution * max(
                HIGH * self.deviation, (STEEP_RISE if in_tail else RISE) * level, floor
            )
            is_very_high = is_up and rise > caution * max(VERY_HIGH * self.deviation, STEEP_RISE * level, floor)
            self.high = [*self.high[-2:], is_high]
            if is_very_high or (is_high and sum(self.high) >= 2):
                self.active, self.trigger, self.back = True, step, 0
                self.peak, self.settling = loss, [loss]
                return
            if is_high:
                return
        if in_tail:
            self.settling = [*self.settling[-(MIN_LOSSES - 1) :], loss]
        else:
            self.losses.push(loss)

    def _in_tail(self, step: int, loss: float) -> bool:
        """Return whether the loss still decays after a jump; it is then compared to the losses before the jump."""
        if self.tail_until is None:
            return False
        values = self.losses.values
        level, spread = median_and_spread(values)
        back = level + max(HIGH * spread, RISE * abs(level), FLOOR * self.scale)
        if loss > back and step < self.tail_until:
            return True
        if loss > back:
            self.losses.values = list(self.settling)
        self.tail_until = None
        return False

    def _inside(self, step: int, loss: float, interval: int) -> None:
        """Add a loss to the jump in progress, and end the jump if the loss is back or has stayed up for long."""
        self.peak = max(self.peak, loss)
        self.settling = [*self.settling[-(WINDOW - 1) :], loss]
        self.back = self.back + 1 if loss <= self.baseline + BACK * (self.peak - self.baseline) else 0
        if self.back < 3 and step - self.trigger < LONGEST * interval:
            return
        if self.back < 3:
            self.losses.values = list(self.settling)
        else:
            self.settling = self.settling[-3:]
            self.tail_until = step + LONGEST * interval
        self.active, self.high = False, []
