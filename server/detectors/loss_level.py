"""The level of a loss outside of spikes, and how far the next loss usually is from it.

The next loss is expected at the median of the last 9 losses, or one deviation above the median of the last three if
that is lower: the level follows a falling curve, and not a rise. The deviation is that of independent noise whose
changes from one loss to the next have the observed spread (0.75 × 1.4826·MAD of the last 32 changes), because
changes hold little of the trend. It is multiplied by 1 + 4/n for n changes, and is at least 0.8 of its average over
some 50 losses. When 32 errors are known, it is at least
their 90th percentile over that of a normal distribution (1.2816).

Noise whose neighbouring losses are alike, as running means have it, swings further than its changes tell. The swing is
0.9 of the 90th percentile of the differences between losses 16 records apart, over 1.2816·√2, among the last 144 losses
(40 or more); a falling curve has none. The deviation is at least the swing. Where the swing is more than 1.2 times the
deviation by the changes, neighbouring losses are alike, and the swing counts times that excess, at most 2.5.

If the percentile of the errors is three times wider than the changes suggest and the errors are in no order
(correlation below 0.3), the loss is two-peaked and its upper peak is remembered for 400 losses. When the logging
interval changes by a factor of two or more, everything is learnt anew from the third record on; after a spike the
deviation stays at least what it was.

>>> level = LossLevel()
>>> for loss in (4.0, 3.9, 3.8, 3.7, 3.6, 3.5, 3.4, 3.3, 3.2, 3.1):
...     level.push(loss)
>>> round(level.expected, 2)
3.5
"""

from __future__ import annotations

import math
from operator import mul, sub
from typing import Final

import msgspec

from server.detectors.robust import RecentValues, median, median_and_spread

RECENT_LOSSES: Final = 9
"""Number of losses in the median."""
LAST_LOSSES: Final = 3
"""Number of losses below whose median the level is never expected, and that are kept when the level is learnt anew."""
ERRORS: Final = 32
"""Number of differences from which bias and deviation are taken."""
MIN_ERRORS: Final = 5
"""Number of differences below which the deviation is unknown."""
SMALL_SAMPLE: Final = 4.0
"""Weight of the correction for few differences."""
REFRESH: Final = 4
"""Number of losses after which bias and deviation are computed again."""
UPPER, GAUSSIAN_UPPER = 0.9, 1.2816
"""Quantile of the errors that bounds the deviation from below, and its place in a normal distribution."""
CHANGE: Final = 0.75
"""Error of a forecast in units of the change from one loss to the next, for independent noise."""
STEADY, RENEWED = 0.8, 0.2
"""Share of the average deviation that the present one reaches at least, and the weight of the present one in it."""
MIXED: Final = 0.3
"""Correlation below which a wide upper tail is another kind of loss, and not the losses of one event."""
TAIL_LOSSES: Final = 400
"""Number of losses for which the upper peak of a two-peaked loss is remembered."""
WINSOR: Final = 3.0
"""Deviations to which a difference is limited in the correlation."""
MEMORY_ERROR, MAX_MEMORY = 0.3, 0.9
"""Correlation that 32 independent differences may show, and the largest one that is used."""
TREND: Final = 1.0
"""Deviations above the last losses at which a falling loss is expected."""
TWO_PEAKED: Final = 3.0
"""Ratio of the deviation of the upper tail to that of the middle, above which the differences are not normal."""
ROUNDING: Final = 1e-6
"""Deviation of the changes, relative to the loss, that may be rounding in single precision."""
MAX_EXCESS: Final = 2.5
"""Largest excess by which a swing is multiplied."""
LAG: Final = 16
"""Number of records between two losses whose difference is a swing."""
SWING: Final = 0.9
"""Weight of the swing: for independent noise it stays below the deviation by the changes."""
MIN_SWINGS, SWING_LOSSES = 40, 144
"""Smallest and largest number of losses from which the swing is taken."""
SWING_REFRESH: Final = 8
"""Number of losses after which the swing is computed again."""
CORRELATED: Final = 1.2
"""Ratio of the swing to the deviation by the changes from which neighbouring losses are alike."""


class LossLevel(msgspec.Struct):
    """Level and deviation of the losses outside of spikes."""

    recent: list[float] = []
    """Latest losses, oldest first."""
    errors: RecentValues = msgspec.field(default_factory=lambda: RecentValues(ERRORS))
    """Latest differences of a loss to the median of those before it."""
    changes: RecentValues = msgspec.field(default_factory=lambda: RecentValues(ERRORS))
    """Latest differences of a loss to the one before it."""
    pause: int = 0
    """Usual number of steps between two losses."""
    middle: float = math.nan
    """Robust standard deviation of the differences; NaN if unknown."""
    upper: float = 0.0
    """Deviation of a normal distribution with the 90th percentile of the errors; 0 before there are 32."""
    memory: float = 0.0
    """Correlation of a difference with the one before it; 0 if unknown."""
    tail: float = 0.0
    """Deviation of the upper peak of a two-peaked loss; 0 for other losses."""
    tail_losses: int = 0
    """Number of losses for which the upper peak is still remembered."""
    usual: float = 0.0
    """Average deviation over some 50 losses; 0 if unknown."""
    floor: float = 0.0
    """Smallest deviation while few losses are known since the last spike: the one before it."""
    sequence: list[float] = []
    """Latest losses from which the swing is taken, oldest first."""
    swing: float = 0.0
    """Deviation of the noise over 16 records; 0 if unknown, and below 0 on a falling curve."""
    unswung: int = 0
    """Number of losses since the swing was computed."""
    pending: int = 0
    """Number of losses since bias and deviation were computed."""

    def push(self, loss: float, expected: float | None = None) -> None:
        """Add a loss; `expected` is what the level expected, if the caller has asked already."""
        if self.tail_losses:
            self.tail_losses -= 1
            self.tail = self.tail if self.tail_losses else 0.0
        if expected is None:
            expected = self.expected
        self.sequence.append(loss)
        self.unswung += 1
        if self.unswung >= SWING_REFRESH and len(self.sequence) >= MIN_SWINGS:
            self._refresh_swing()
        if self.recent:
            self.changes.push(loss - self.recent[-1])
        if expected is not None:
            self.errors.push(loss - expected)
            self.pending += 1
            count = len(self.errors.values)
            if self.pending >= REFRESH or MIN_ERRORS <= count < MIN_ERRORS + REFRESH:
                self._refresh()
        self.recent.append(loss)
        if len(self.recent) > RECENT_LOSSES:
            del self.recent[0]

    def _refresh(self) -> None:
        self.pending = 0
        count = len(self.errors.values)
        if count < MIN_ERRORS:
            return
        # A loss with few values, such as 1, 2, 3, 1, 2, 3, changes by the same number more often than not.
        change = median_and_spread(self.changes.values)[1]
        if change <= ROUNDING * abs(self.recent[-1]):
            change = median_and_spread(self.recent)[1]
        spread = CHANGE * (1 + SMALL_SAMPLE / count) * change
        self.floor = 0.0 if count == ERRORS else self.floor
        self.middle = max(spread, self.floor, STEADY * self.usual)
        if count == ERRORS:
            self.usual += (spread - self.usual) * (RENEWED if self.usual else 1.0)
            self.memory = _memory(self.errors.values)
            self.upper = sorted(self.errors.values)[math.ceil(UPPER * count) - 1] / GAUSSIAN_UPPER
            if self.upper > TWO_PEAKED * self.middle > 0 and self.memory < MIXED:
                self.remember_tail(self.upper)

    def _refresh_swing(self) -> None:
        self.unswung = 0
        sequence = self.sequence
        del sequence[:-SWING_LOSSES]
        swings = sorted(map(sub, sequence[LAG:], sequence))
        upper = swings[math.ceil(UPPER * len(swings)) - 1]
        self.swing = SWING * upper / (GAUSSIAN_UPPER * math.sqrt(2))

    def add_noise(self, losses: list[float]) -> None:
        """Take these losses, which do not belong to the level, for a part of its noise."""
        self.sequence.extend(losses)
        self.unswung += len(losses)

    def remember_tail(self, deviation: float) -> None:
        """Take the loss for two-peaked, with this deviation of its upper peak."""
        self.tail, self.tail_losses = max(self.tail, deviation), TAIL_LOSSES

    def follow(self, pause: int) -> None:
        """Learn the level anew if the usual number of steps between two losses has changed by a factor of two."""
        if self.pause == 0:
            self.pause = pause
        elif pause >= 2 * self.pause or 2 * pause <= self.pause:
            self.pause, self.usual, self.swing = pause, 0.0, 0.0
            self.restart(self.recent[-LAST_LOSSES:])

    def restart(self, losses: list[float], floor: float = 0.0, *, is_same_noise: bool = False) -> None:
        """Learn level and deviation anew from these losses on; until it is known the deviation is at least `floor`.

        The swing stays what it is until 40 losses are known, to which those before count if `is_same_noise`.
        """
        if not is_same_noise:
            self.sequence = []
        self.recent, self.errors.values, self.changes.values = [], [], []
        self.middle, self.upper, self.memory, self.floor, self.pending = math.nan, 0.0, 0.0, floor, 0
        for loss in losses:
            self.push(loss)

    @property
    def expected(self) -> float | None:
        """Expected next loss; None with fewer than three losses."""
        if len(self.recent) < LAST_LOSSES:
            return None
        level = median(self.recent)
        last = median(self.recent[-LAST_LOSSES:])
        if last >= level:
            return level
        deviation = self.deviation
        return min(level, last if deviation is None else last + TREND * deviation)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the next loss around the expected one; None with too few losses."""
        if math.isnan(self.middle):
            return None
        swing = self.swing
        if swing > CORRELATED * self.middle > 0:
            swing *= min(swing / (CORRELATED * self.middle), MAX_EXCESS)
        return max(self.middle, self.upper, self.tail, swing)

    @property
    def is_two_peaked(self) -> bool:
        """Whether the upper tail of the differences is much wider than their middle, at places without order."""
        return self.tail > 0


def _memory(values: list[float]) -> float:
    """Return the correlation of values with those before them, less its error; values far out count less."""
    centre, spread = median_and_spread(values)
    if not 0 < spread < math.inf:  # the largest floats have no difference
        return 0.0
    raw = [(value - centre) / spread for value in values]
    scores = [WINSOR if one > WINSOR else -WINSOR if one < -WINSOR else one for one in raw]  # calls would take longer
    total: float = sum(map(mul, scores, scores))
    common: float = sum(map(mul, scores, scores[1:]))
    return min(max(common / total - MEMORY_ERROR, 0.0), MAX_MEMORY)
