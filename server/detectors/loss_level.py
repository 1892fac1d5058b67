"""The level of a loss outside of spikes, and how far the next loss usually is from it.

With p the median of the last 9 losses and d the differences of the last 32 losses to the p before each of them, the
next loss is expected at p plus the median of d if that is negative, but not below the median of the last three losses.
So the level follows a falling curve and does not follow a rise. Its deviation is the larger one of 1.4826·MAD of d, and
the distance from the median of d to its 90th percentile over that of a normal distribution, 1.2816. It is the error of
the forecast itself: noise, trend and correlation from record to record are in it, and so are the upper peak of a
two-peaked loss and a heavy upper tail. Few differences make it uncertain, so it is multiplied by 1 + 4/n for n of them.

When the logging interval changes by a factor of two or more, everything is learnt anew from the third record on.

>>> level = LossLevel()
>>> for loss in (4.0, 3.9, 3.8, 3.7, 3.6, 3.5, 3.4, 3.3, 3.2, 3.1):
...     level.push(loss)
>>> round(level.expected, 2)
3.2
"""

from __future__ import annotations

import math
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
"""Quantile of the differences that bounds the deviation from below, and its place in a normal distribution."""
CHANGE: Final = 0.75
"""Error of a forecast in units of the change from one loss to the next, for independent noise."""
TREND: Final = 1.0
"""Deviations above the last losses at which a falling loss is expected."""
TWO_PEAKED: Final = 3.0
"""Ratio of the deviation of the upper tail to that of the middle, above which the differences are not normal."""


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
    """Standard deviation of a normal distribution with the 90th percentile of the differences; 0 before there are 32."""
    pending: int = 0
    """Number of losses since bias and deviation were computed."""

    def push(self, loss: float) -> None:
        """Add a loss."""
        expected = self.expected
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
        self.middle = CHANGE * (1 + SMALL_SAMPLE / count) * median_and_spread(self.changes.values)[1]
        if count == ERRORS:
            self.upper = sorted(self.errors.values)[math.ceil(UPPER * count) - 1] / GAUSSIAN_UPPER

    def follow(self, pause: int) -> None:
        """Learn the level anew if the usual number of steps between two losses has changed by a factor of two."""
        if self.pause == 0:
            self.pause = pause
        elif pause >= 2 * self.pause or 2 * pause <= self.pause:
            self.pause = pause
            self.restart(self.recent[-LAST_LOSSES:])

    def restart(self, losses: list[float]) -> None:
        """Learn level and deviation anew, beginning with these losses."""
        self.recent, self.errors.values, self.changes.values = [], [], []
        self.middle, self.upper, self.pending = math.nan, 0.0, 0
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
        return None if math.isnan(self.middle) else max(self.middle, self.upper)

    @property
    def is_two_peaked(self) -> bool:
        """Whether the upper tail of the differences is much wider than their middle."""
        return len(self.errors.values) == ERRORS and self.upper > TWO_PEAKED * self.middle
