"""Small estimators that survive outliers: running median and MAD, a least-squares slope, a bias-corrected mean.

Every class is a `msgspec.Struct`, so that the whole state of a monitor is encoded by one call.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from operator import mul
from typing import Final

import msgspec

RECENT: Final = 10
"""Steps for which "just now" holds."""
GAUSSIAN_MAD: Final = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""


def median(values: Sequence[float]) -> float:
    """Median of finite numbers; NaN for none.

    >>> median([3.0, 1.0, 100.0])
    3.0
    """
    return _middle(sorted(values))


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Median of finite numbers and robust standard deviation, 1.4826 × the median absolute deviation from it; NaN for
    none.

    >>> median_and_spread([3.0, 1.0, 100.0])
    (3.0, 2.9652)
    """
    ordered = sorted(values)
    centre = _middle(ordered)
    return centre, GAUSSIAN_MAD * _middle_deviation(ordered, centre)


def _middle(ordered: Sequence[float]) -> float:
    if not ordered:
        return math.nan
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def _middle_deviation(ordered: Sequence[float], centre: float) -> float:
    """Median of |value − centre|. In order of their values, those that are nearest to the centre lie together, so
    the nearer half is found by bisection, and the middle deviations lie at its ends."""
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


class Window(msgspec.Struct):
    """The last `size` values pushed, oldest first."""

    size: int
    values: list[float] = []

    def push(self, value: float) -> None:
        self.values.append(value)
        if len(self.values) > self.size:
            del self.values[0]


class Line(msgspec.Struct, frozen=True):
    """A fitted line."""

    slope: float
    """Per step."""
    fit: float
    """Share of the variance explained, 0…1."""
    value: float
    """Of the line at the last step."""


class Track(msgspec.Struct):
    """The last `size` (step, value) pairs, and the line through them."""

    size: int
    steps: list[int] = []
    values: list[float] = []

    def push(self, step: int, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) > self.size:
            del self.steps[0]
            del self.values[0]

    def z(self, value: float, least: int, floor: float) -> float:
        """Robust z-score of `value` against the pairs held; the deviation is `floor` at least. 0 for fewer than
        `least`."""
        if len(self.values) < least:
            return 0.0
        centre, spread = median_and_spread(self.values)
        return (value - centre) / max(spread, floor)

    def age(self, step: int) -> int | None:
        """Steps since the last pair; None when there is none, or when it is older than two usual pauses (10 at
        least)."""
        if not self.steps:
            return None
        age = step - self.steps[-1]
        if age <= RECENT:
            return age
        pauses = [b - a for a, b in pairwise(self.steps[-5:])]
        return age if age <= 2 * max(pauses, default=0) else None

    def since(self, step: int) -> Sequence[float]:
        """The values held of this step and later ones."""
        if self.steps and self.steps[0] >= step:
            return self.values
        return self.values[bisect_left(self.steps, step) :]

    def line(self, least: int, since: int | None = None) -> Line | None:
        """Least squares over the pairs at or after step `since`; None for fewer than `least` of them."""
        steps, values = self.steps, self.values
        if since is not None and steps and steps[0] < since:
            first = bisect_left(steps, since)
            steps, values = steps[first:], values[first:]
        count = len(steps)
        if count < max(least, 2):
            return None
        mean_x = sum(steps) / count
        mean_y = sum(values) / count
        dx = [x - mean_x for x in steps]
        dy = [y - mean_y for y in values]
        sxx = sum(map(mul, dx, dx))
        sxy = sum(map(mul, dx, dy))
        syy = sum(map(mul, dy, dy))
        if sxx <= 0:
            return None
        slope = sxy / sxx
        return Line(slope, slope * sxy / syy if syy > 0 else 0.0, mean_y + slope * (steps[-1] - mean_x))


class Mean(msgspec.Struct):
    """Exponential moving average, corrected for its start; `None` before the first value."""

    decay: float
    total: float = 0.0
    weight: float = 0.0

    def push(self, value: float) -> None:
        self.total = self.decay * self.total + (1 - self.decay) * value
        self.weight = self.decay * self.weight + (1 - self.decay)

    @property
    def value(self) -> float | None:
        return self.total / self.weight if self.weight > 0 else None
