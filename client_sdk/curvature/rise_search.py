"""Search for the shortest step length at which a loss rises, from few trials. Pure; it evaluates nothing itself.

Owns the bracket between the longest length that does not raise the loss and the shortest that does. With the change
ΔL(s) of the loss at length s, the quotient ΔL(s)/s of a quadratic loss is a straight line, so its root follows from two
trials and is exact. Any other loss is searched by the same secant, with bisection where that makes no progress.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Change = Literal["fell", "rose", "even"]
"""Change of the loss along a trial: down, up, or too small to be told from rounding."""

COLD_FACTOR: Final = 2.0  # between the first two trials of a search that knows nothing
MOST_SQUARINGS: Final = 5  # of that factor; 2^32 is further than any length
PATIENCE: Final = 4  # trials on one side in which secants alone are followed; those of a steep wall hardly move
FURTHEST: Final = 16.0  # factor from the nearest trial beyond which no secant is followed
ASCENT_FACTOR: Final = 100.0  # by which a length is shortened that seems to lead uphill from the start
SLOW: Final = 0.5  # width of the bracket on a log scale, relative to that before two trials, above which it is bisected
SHALLOW_TRIALS: Final = 3  # between two ends none of which lowered the loss, after which nothing is found there


@dataclass(frozen=True)
class Trial:
    """One trial of a step."""

    length: float
    """Length s of the step, above zero."""
    change: Change
    slope: float
    """ΔL(s)/s, or infinity where the loss at s is not finite."""


class RiseSearch:
    """Bracket of the shortest length at which a loss rises, which narrows with each trial."""

    def __init__(self, *, tolerance: float, guess: float | None = None) -> None:
        """Prepare a search that is over when (upper − lower)/η_c is at most ``tolerance``, between 0 and 1.

        The search starts around ``guess``, or without knowledge if it is None.
        """
        self._margin = 0.45 * tolerance  # of the ends around an estimate, relative to it
        self._tolerance = tolerance
        self._guess = guess
        self._narrow_factor = (1 + self._margin) / (1 - self._margin)
        self._factor = COLD_FACTOR if guess is None else self._narrow_factor
        self._trials: list[Trial] = []
        self._lower, self._upper = 0.0, math.inf
        self._has_fallen = False
        self._open_trials = self._shallow_trials = 0
        self._widths: list[float] = []

    @property
    def lower(self) -> float:
        """Longest length that did not raise the loss; 0 if there is none."""
        return self._lower

    @property
    def upper(self) -> float:
        """Shortest length that raised the loss; infinity if there is none."""
        return self._upper

    @property
    def is_closed(self) -> bool:
        """Whether both ends of the bracket are known."""
        return self._lower > 0.0 and math.isfinite(self._upper)

    @property
    def has_fallen(self) -> bool:
        """Whether any length lowered the loss."""
        return self._has_fallen

    @property
    def value(self) -> float | None:
        """Estimate of the critical length, or None as long as an end of the bracket is missing."""
        if not self.is_closed:
            return None
        root = self._root()
        is_inside = root is not None and self._lower <= root <= self._upper
        return root if is_inside else math.sqrt(self._lower * self._upper)

    @property
    def error(self) -> float:
        """Width of the bracket relative to the estimate; infinity as long as an end is missing."""
        value = self.value
        return math.inf if value is None else (self._upper - self._lower) / value

    @property
    def is_done(self) -> bool:
        """Whether the bracket is narrow enough and a length that lowers the loss is known."""
        return self._has_fallen and self.error <= self._tolerance

    @property
    def is_shallow(self) -> bool:
        """Whether several trials between the ends have found no length that lowers the loss by more than rounding."""
        return not self._has_fallen and self._shallow_trials >= SHALLOW_TRIALS

    @property
    def is_ascent(self) -> bool:
        """Whether every length raised the loss, and shorter ones will too as far as the slopes can tell."""
        rises = sorted((trial.length, trial.slope) for trial in self._trials if trial.change == "rose")
        if self._has_fallen or len(rises) < 2:
            return False
        (short, low), (long, high) = rises[:2]
        return math.isfinite(high) and low * long >= high * short

    def forget_slopes(self) -> None:
        """Note that further trials are of another loss, such as that of another batch, along the same step."""
        self._trials.clear()

    def propose(self, start: float) -> float:
        """Return the length of the next trial; ``start`` is that of the first one if nothing is known."""
        lower, upper, margin = self._lower, self._upper, self._margin
        if lower == 0.0 and math.isinf(upper):
            return start if self._guess is None else self._guess * (1 + margin)
        root = self._root()
        if lower == 0.0:
            if self.is_ascent:
                return upper / ASCENT_FACTOR
            usual = upper / self._widening()
            if root is None or root >= upper:
                return usual
            return max(self._further(root * (1 - margin), usual, min), upper / FURTHEST)
        if math.isinf(upper):
            usual = lower * self._widening()
            if root is None or root * (1 + margin) <= lower:
                return usual
            return min(self._further(root * (1 + margin), usual, max), lower * FURTHEST)
        middle = math.sqrt(lower * upper)
        if not self._has_fallen and self.error <= self._tolerance:
            return lower / 2.0  # where a quadratic loss is lowest, and its fall most easily told from rounding
        if root is None or self._is_slow():
            return middle
        # The trial lies beside the estimate, on the side of the end that is further away and that it will replace.
        beside = root * (1 + margin) if upper / root > root / lower else root * (1 - margin)
        return beside if lower < beside < upper else middle

    def observe(self, trial: Trial) -> None:
        """Take in the trial of a length near the one that `propose` returned."""
        self._trials.append(trial)
        was_closed = self.is_closed
        if trial.change == "rose":
            self._lower = self._lower if self._lower < trial.length else 0.0
            self._upper = min(self._upper, trial.length)
        else:
            self._has_fallen |= trial.change == "fell"
            self._upper = self._upper if self._upper > trial.length else math.inf
            self._lower = max(self._lower, trial.length)
        if not self.is_closed:
            self._widths.clear()
            self._open_trials += 1
            return
        self._factor, self._open_trials = self._narrow_factor, 0
        self._widths.append(math.log(self._upper / self._lower))
        self._shallow_trials += was_closed and not self._has_fallen

    def _widening(self) -> float:
        """Return the factor from the only end that is known to the next trial, which is squared with each of them."""
        squared: float = self._factor ** (2.0 ** min(self._open_trials - 1, MOST_SQUARINGS))
        return squared

    def _further(self, secant: float, usual: float, end: Callable[[float, float], float]) -> float:
        """Return the length of the secant, or after several trials in vain the further one, which ``end`` selects."""
        return end(secant, usual) if self._open_trials >= PATIENCE else secant

    def _root(self) -> float | None:
        """Return the positive root of the line through the two trials nearest to it, or None if there is none."""
        known = [trial for trial in self._trials if math.isfinite(trial.slope)]
        if len(known) < 2:
            return None
        first, second = sorted(known, key=lambda trial: abs(trial.slope))[:2]
        rise, run = second.slope - first.slope, second.length - first.length
        if run == 0.0 or not rise / run > 0.0:
            return None
        root = first.length - first.slope * run / rise
        return root if root > 0.0 else None

    def _is_slow(self) -> bool:
        """Return whether the last two trials have narrowed the bracket less than bisection would."""
        return len(self._widths) >= 3 and self._widths[-1] > SLOW * self._widths[-3]
