"""Small estimators that survive outliers: median and MAD, a least-squares line, a bias-corrected moving average.

Every class is a `msgspec.Struct`, so that one call encodes the whole state of a detector suite. The names of the fields
are part of the snapshot format.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from operator import mul
from typing import Final

import msgspec

RECENT: Final = 10
"""Number of steps that count as "just now"."""
GAUSSIAN_MAD: Final = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""


def median(values: Sequence[float]) -> float:
    """Return the median of finite numbers, NaN for an empty sequence.

    >>> median([3.0, 1.0, 100.0])
    3.0
    """
    return _middle(sorted(values))


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the median of finite numbers and 1.4826 × their median absolute deviation; NaN for an empty sequence.

    The second number estimates the standard deviation of a normal distribution and ignores outliers.

    >>> median_and_spread([3.0, 1.0, 100.0])
    (3.0, 2.9652)
    """
    ordered = sorted(values)
    centre = _middle(ordered)
    return centre, GAUSSIAN_MAD * _median_deviation(ordered, centre)


def _middle(ordered: Sequence[float]) -> float:
    if not ordered:
        return math.nan
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def _median_deviation(ordered: Sequence[float], centre: float) -> float:
    """Return the median of |value − centre| for sorted values.

    The values nearest to the centre are adjacent in sorted order. Bisection finds that half, and the middle deviations
    are at its two ends, so no second sort is needed.
    """
    count = len(ordered)
    if count == 0:
        return math.nan
    nearest = count // 2 + 1
    left, right = 0, count - nearest
    while left < right:
        middle = (left + right) // 2
        if centre - ordered[middle] > ordered[middle + nearest] - centre:
            left = middle + 1
        else:
            right = middle
    below, above = abs(ordered[left] - centre), abs(ordered[left + nearest - 1] - centre)
    if count % 2:
        return max(below, above)
    if below > above:
        inner = max(abs(ordered[left + 1] - centre), above)
        return 0.5 * (inner + below)
    inner = max(below, abs(ordered[left + nearest - 2] - centre))
    return 0.5 * (inner + above)


class RecentValues(msgspec.Struct):
    """The last `size` values, oldest first."""

    size: int
    values: list[float] = []

    def push(self, value: float) -> None:
        """Add a value and drop the oldest one when there are too many."""
        self.values.append(value)
        if len(self.values) > self.size:
            del self.values[0]


class LineFit(msgspec.Struct, frozen=True):
    """A least-squares line through values over steps."""

    slope: float
    """Slope per step."""
    fit: float
    """Share of the variance that the line explains, between 0 and 1."""


class RecentPoints(msgspec.Struct):
    """The last `size` pairs of step and value, and the line through them."""

    size: int
    steps: list[int] = []
    values: list[float] = []
    fitted: LineFit | None = None
    """Line through the pairs from position `fitted_from` on."""
    fitted_from: int | None = None
    """Position of the first pair of the last fit; None if pairs were added or dropped since then."""

    def push(self, step: int, value: float) -> None:
        """Add a pair and drop the oldest one when there are too many."""
        self.fitted_from = None
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) > self.size:
            del self.steps[0]
            del self.values[0]

    def clear(self) -> None:
        """Forget all pairs."""
        self.steps, self.values, self.fitted_from = [], [], None

    def z_score(self, value: float, min_count: int, min_spread: float) -> float:
        """Return the robust z-score of a value against the stored ones, 0 with fewer than `min_count` of them."""
        if len(self.values) < min_count:
            return 0.0
        centre, spread = median_and_spread(self.values)
        return (value - centre) / max(spread, min_spread)

    def is_current(self, step: int) -> bool:
        """Whether the last value still counts at a step: at most 10 steps old, or twice the longest recent pause."""
        if not self.steps:
            return False
        age = step - self.steps[-1]
        if age <= RECENT:
            return True
        pauses = [b - a for a, b in pairwise(self.steps[-5:])]
        return age <= 2 * max(pauses, default=0)

    def since(self, step: int) -> Sequence[float]:
        """Return the stored values of a step and all later ones."""
        if self.steps and self.steps[0] >= step:
            return self.values
        return self.values[bisect_left(self.steps, step) :]

    def line(self, min_count: int, since: int | None = None) -> LineFit | None:
        """Fit a line to the pairs from step `since` on; None with fewer than `min_count` of them.

        >>> RecentPoints(size=9, steps=[1, 2, 3], values=[1.0, 3.0, 5.0]).line(min_count=3)
        LineFit(slope=2.0, fit=1.0)
        """
        steps, values = self.steps, self.values
        first = bisect_left(steps, since) if since is not None and steps and steps[0] < since else 0
        count = len(steps) - first
        if count < max(min_count, 2):
            return None
        if first != self.fitted_from:
            self.fitted, self.fitted_from = _line(steps[first:], values[first:]), first
        return self.fitted


def _line(steps: Sequence[int], values: Sequence[float]) -> LineFit | None:
    """Return the least-squares line through at least two pairs; None if all have the same step."""
    count = len(steps)
    mean_y = sum(values) / count
    if steps[-1] - steps[0] == count - 1:  # each step is one above the one before it
        dx, sxx = _consecutive(count)
    else:
        mean_x = sum(steps) / count
        dx = tuple(x - mean_x for x in steps)
        sxx = sum(map(mul, dx, dx))
    dy = [y - mean_y for y in values]
    sxy = sum(map(mul, dx, dy))
    syy = sum(map(mul, dy, dy))
    if sxx <= 0:
        return None
    slope = sxy / sxx
    return LineFit(slope, slope * sxy / syy if syy > 0 else 0.0)


@lru_cache(maxsize=256)
def _consecutive(count: int) -> tuple[tuple[float, ...], float]:
    """Return the distances of consecutive steps to their mean, and the sum of their squares."""
    distances = tuple(at - (count - 1) / 2 for at in range(count))
    return distances, sum(map(mul, distances, distances))


class MovingAverage(msgspec.Struct):
    """An exponential moving average, corrected for the bias of its start.

    >>> average = MovingAverage(decay=0.9)
    >>> average.push(5.0)
    >>> average.value
    5.0
    """

    decay: float
    total: float = 0.0
    weight: float = 0.0

    def push(self, value: float) -> None:
        """Move the average towards a value."""
        self.total = self.decay * self.total + (1 - self.decay) * value
        self.weight = self.decay * self.weight + (1 - self.decay)

    @property
    def value(self) -> float | None:
        """The average so far; None before the first value."""
        return self.total / self.weight if self.weight > 0 else None
