"""The budget of a `watch`: the share of the training's time that measuring may take over any `WINDOW` steps.

Owns the account only; pure. Whoever measures asks before (`allows`) and says afterwards what it took (`spend`).
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Final, Literal

Purpose = Literal["layers", "curvature"]
"""The purpose of time that is spent: layer statistics, or curvature with the directions that it follows."""

WINDOW: Final = 200  # steps
FIRST: Final = 3  # steps whose time must be known before anything is allowed
TIMES: Final = 31  # steps whose median is the time of a step
MEDIAN_EVERY: Final = 8  # steps between two medians, once there are TIMES of them; a median costs microseconds
LONGEST: Final = 4.0  # times the median, for which one step counts at most
BRIEF: Final = 0.02
"""Seconds of a training step below which much of a measurement is the fixed cost of preparing it.

There, few measurements that find much are worth more than many small ones. The tenth of a second that one step takes
longer at most disturbs nobody.
"""


class Budget:
    """Account of the time that measuring takes beside training. Used on the training thread.

    A step counts with `LONGEST` times the median of the last steps at most, so that a pause such as an evaluation of
    the model does not count as time that measuring may share.

    >>> budget = Budget(0.05)
    >>> for _ in range(10):
    ...     budget.end_step(0.1)
    >>> budget.allows(0.9), budget.allows(1.1)
    (True, False)
    """

    def __init__(self, share: float) -> None:
        """Allow ``share`` of the training's time, such as 0.05; infinity sets no limit."""
        self.share = share
        """Share of the training's time that may be spent."""
        self._times: deque[float] = deque(maxlen=TIMES)
        self._step_time = 0.0
        self._own = _Window()
        self._spent: dict[Purpose, _Window] = {"layers": _Window(), "curvature": _Window()}
        self._windows = (self._own, *self._spent.values())

    @property
    def step_time(self) -> float:
        """Seconds of a training step without the measuring; 0 while that is not known."""
        return self._step_time

    @property
    def is_brief(self) -> bool:
        """Whether there is a limit, and steps are so brief that measurements are best made rarely and whole."""
        return 0.0 < self._step_time < BRIEF and not math.isinf(self.share)

    def end_step(self, seconds: float) -> None:
        """End a step of training, which took ``seconds`` without the measuring."""
        times = self._times
        times.append(seconds)
        if len(times) >= FIRST and (len(times) < TIMES or self._own.steps % MEDIAN_EVERY == 0):
            self._step_time = median(times)
        if self._step_time and seconds > LONGEST * self._step_time:
            seconds = LONGEST * self._step_time
        self._own.add(seconds)
        for window in self._windows:
            window.advance()

    def spend(self, seconds: float, purpose: Purpose) -> None:
        """Take in the time that measuring took since the last step ended."""
        self._spent[purpose].add(seconds)

    def allows(self, seconds: float, purpose: Purpose | None = None, part: float = 1.0) -> bool:
        """Return whether measuring may take ``seconds`` now.

        With ``purpose``, the time spent on it must also stay within ``part`` of the budget.
        """
        if math.isinf(self.share):
            return True
        if self.step_time == 0.0:
            return False
        allowed = self._allowed
        within = self.spent() + seconds <= allowed
        return within and (purpose is None or self._spent[purpose].total + seconds <= part * allowed)

    def left(self) -> float:
        """Return the seconds that measuring may take now; infinite without a limit, 0 while that is not known."""
        if math.isinf(self.share):
            return math.inf
        return max(0.0, self._allowed - self.spent()) if self.step_time > 0.0 else 0.0

    @property
    def _allowed(self) -> float:
        """Seconds that measuring may take over the window.

        The step under way, and those of a window that is not over, are expected to take as long as the others, but no
        longer than the last ones: what was spent in a slow stretch, as that of a busy machine, also counts for windows
        of steps to come.
        """
        mean = self._own.total / min(self._own.steps, WINDOW - 1)
        return self.share * WINDOW * min(mean, self._step_time)

    def spent(self, purpose: Purpose | None = None) -> float:
        """Return the seconds that were spent over the last `WINDOW` steps, on everything or on ``purpose``."""
        spent = self._spent
        return spent["layers"].total + spent["curvature"].total if purpose is None else spent[purpose].total

    def used(self, purpose: Purpose | None = None) -> float:
        """Return the share of the training's time that was spent over the last `WINDOW` steps; 0 while not known."""
        return self.spent(purpose) / self._own.total if self.step_time > 0 else 0.0

    def steps_between(self, seconds: float, part: float = 1.0) -> int:
        """Return the number of steps at which something that takes ``seconds`` uses ``part`` of the budget."""
        if math.isinf(self.share) or seconds <= 0:
            return 1
        rate = part * self.share * self.step_time
        return max(1, math.ceil(seconds / rate)) if rate > 0 else WINDOW


class _Window:
    """Sum of the times spent at the last steps."""

    def __init__(self) -> None:
        self._parts: deque[float] = deque([0.0])
        self.total = 0.0
        self.steps = 0

    def add(self, seconds: float) -> None:
        self._parts[-1] += seconds
        self.total += seconds

    def advance(self) -> None:
        self.steps += 1
        self._parts.append(0.0)
        if len(self._parts) > WINDOW:  # the step under way is one of them
            self.total = max(0.0, self.total - self._parts.popleft())
        if self.steps % WINDOW == 0:
            self.total = math.fsum(self._parts)  # sheds the rounding errors of the differences
