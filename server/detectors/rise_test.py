"""A sequential test for a rise of the loss, and the record at which it began.

With z the distance of a loss to its expected value in deviations and r the correlation of neighbouring errors, the news
of a record is z − r·z of the record before, at most 8. The sum S ← max(0, S + news − 1.5) of the losses since S was
last zero is compared to 8 (Page's CUSUM test for a shift by three deviations). Two losses at 5.5 deviations reach it,
three at 4.2, five at 3.1, nine at 2.4; a single loss does not, however high. Level and deviation are those before the
sum began to grow, and its losses count towards a new level only if the sum returns to zero.

The limit is higher in a run whose sums often grow without a rise. The excess over 3 of the last such sums is taken for
exponential, and the limit is what one of a thousand of them reaches.

The rise began at the record from which on the sum of z − 3 is largest (less for a small rise): a single restless
record before it does not belong to it.

>>> test = RiseTest()
>>> [test.add(step, 1.0, z, z, step) for step, z in enumerate([2.0, 6.5, 6.5])]
[False, False, True]
>>> test.onset
1

Reference: Page 1954, Biometrika 41, 100–115.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from server.detectors.robust import median

ALLOWANCE: Final = 1.5
"""Deviations that a loss may be above its expected value without adding to the sum."""
LIMIT: Final = 8.0
"""Sum that makes a rise."""
CAP: Final = 8.0
"""Largest number of deviations that one loss adds."""
BEGUN: Final = 3.0
"""Deviations that a record of the rise has on average."""
SECOND: Final = 4.5
"""Deviations of a second loss from which a rise does not hang on a single one."""
LASTING, MOST = 3, 2.5
"""Number of losses of a rise from which their median counts, and its deviations then."""
LONGEST: Final = 12
"""Number of losses after which a sum that neither grows nor falls is given up."""
NOTED: Final = 3.0
"""Peak of a sum from which it is remembered."""
KNOWN, FEW, MEMORY = 8, 4, 400
"""Largest and smallest number of remembered peaks that are used, and the number of losses after which they are not."""
RARE: Final = 7.0
"""Natural logarithm of the number of such sums of which one may make a false alarm."""


class RiseTest(msgspec.Struct):
    """Page's test on standardised losses."""

    total: float = 0.0
    """The sum S since it was last zero."""
    steps: list[int] = []
    """Steps of the losses since S was last zero."""
    losses: list[float] = []
    """Losses since S was last zero."""
    peak: float = 0.0
    """Largest S since it was last zero."""
    counts: list[int] = []
    """Counts of losses at which the latest sums that showed no rise ended."""
    peaks: list[float] = []
    """Peaks of the sums that showed no rise."""
    scores: list[float] = []
    """Distances of these losses in deviations, at most 8."""

    def add(self, step: int, loss: float, score: float, news: float, count: int) -> bool:
        """Add a loss, the `count`-th of the run, and return whether it makes a rise.

        `score` is its distance in deviations, and `news` the part of it that the loss before does not explain.
        """
        score = min(score, CAP)
        self.total += min(news, CAP) - ALLOWANCE
        self.steps.append(step)
        self.losses.append(loss)
        self.scores.append(score)
        self.peak = max(self.peak, self.total)
        return self.total > self.limit(count)

    def limit(self, count: int) -> float:
        """Return the sum that makes a rise: 9, or more in a run whose sums often grow without one.

        The peaks of the last sums that returned to zero, over 3, are taken for exponential; one of a thousand such sums
        then reaches the limit.
        """
        excess = [peak - NOTED for at, peak in zip(self.counts, self.peaks, strict=True) if count - at <= MEMORY]
        return LIMIT if len(excess) < FEW else max(LIMIT, NOTED + RARE * sum(excess) / len(excess))

    @property
    def is_over(self) -> bool:
        """Whether the losses since the sum began to grow show no rise."""
        return self.total <= 0 or len(self.losses) >= LONGEST

    def note(self, count: int, peak: float) -> None:
        """Remember the peak of a sum that showed no rise."""
        if peak > NOTED:
            self.counts = [*self.counts[-(KNOWN - 1) :], count]
            self.peaks = [*self.peaks[-(KNOWN - 1) :], peak]

    def clear(self) -> None:
        """Begin again with a sum of zero."""
        self.total, self.steps, self.losses, self.scores, self.peak = 0.0, [], [], [], 0.0

    @property
    def start(self) -> int:
        """Position of the first loss of the rise among the losses since the sum began to grow."""
        allowance = min(BEGUN, 0.5 * max(self.scores))
        best, total, start = -math.inf, 0.0, len(self.scores) - 1
        for at in range(len(self.scores) - 1, -1, -1):
            total += self.scores[at] - allowance
            if total > best:
                best, start = total, at
        return start

    @property
    def is_single(self) -> bool:
        """Whether one loss makes the rise alone."""
        scores = sorted(self.scores[self.start :])
        if len(scores) > 1 and scores[-2] >= SECOND:
            return False
        return len(scores) < LASTING or median(scores) < MOST

    @property
    def onset(self) -> int:
        """Step of the first loss of the rise."""
        return self.steps[self.start]
