"""The rhythm of the layer statistics: which optimizer steps are measured.

Owns the decision only; pure. Steps are the optimizer's own, counted from 1. A whole number `every` is kept to the
letter. "auto" measures every step at the beginning and while a `Trigger` stirs, and thins otherwise: it measures every
2nd, 4th, 8th … step, so that the measuring takes at most `SHARE` of the training's time. The gradients of the steps
between are followed by a sample of them (`client_sdk.stats.period_two`) where that takes at most half of this share.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Final, Literal

from client_sdk.budget import Budget

Every = int | Literal["auto"]
"""Number of optimizer steps between two measured ones, or "auto"."""

SHARE: Final = 0.02  # of the training's time, which measuring may take in calm times
CALM_PART: Final = 0.4  # of the budget, the same
SHARED_PART: Final = 0.25  # of the budget, the same while curvature is measured as well
LAYERS_PART: Final = 0.5  # of the budget, which layers may use at all, so that curvature has the rest
DENSE_PART: Final = 0.4  # the same while every step is measured, so that calm times have a part of it
FIRST_PART: Final = 0.2  # the same at the beginning, when curvature needs more than later
MAX_INTERVAL: Final = 16  # steps; even a model whose measuring is dear is measured this often if the budget allows it
FOLLOWING: Final = 0.5  # of the share for layers, which following every step may take
KEEP_FOLLOWING: Final = 0.65  # the same while it is under way, so that it does not end and begin over and over
FREE: Final = 3  # steps that are measured before it is known what the budget allows
FIRST: Final = 16  # steps that are all measured at the beginning, which shows what measuring costs
HOLD: Final = 40  # steps that are measured after the last sign
COSTS: Final = 5  # measurements whose median is the cost
STEP_TIMES: Final = 15  # steps whose median is the time of a step
DEBT: Final = 64  # step times at SHARE; beyond them the calm interval is doubled until the dense times are paid back


class Rhythm:
    """Decision before each optimizer step whether to measure its layers, and whether with histograms.

    In a distributed training all ranks must decide alike. There the rhythm of each rank is led: it follows numbers that
    the ranks have agreed on (`lead`), and rank 0 proposes them (`next_in`).
    """

    def __init__(self, *, every: Every, histogram_every: int, budget: Budget | None = None) -> None:
        """Measure every ``every``-th step, with histograms at every ``histogram_every``-th.

        With "auto", measuring every step lasts only while ``budget`` allows it; None sets no limit.
        """
        self._budget = Budget(math.inf) if budget is None else budget
        self.every = every
        """The interval that the user asked for."""
        self._histogram_every = histogram_every
        self.steps = 0
        """Optimizer steps so far."""
        self.logged_at = 0
        """Number of steps at the last measured `log`."""
        self.measured_at: int | None = None
        """The last step that was measured; None before the first."""
        self.is_due = False
        """Whether the step under way is to be measured."""
        self._histogram_at: int | None = None
        self._log_step = 0  # the step that the last record belongs to
        self._steps_a_log = 1
        self._read_at = 0  # the last measured step whose statistics a record has
        self._dense_until = FIRST
        self._led: int | None = None
        self._costs: deque[float] = deque(maxlen=COSTS)
        self._step_times: deque[float] = deque(maxlen=STEP_TIMES)
        self._follow_costs: deque[float] = deque(maxlen=COSTS)
        self.is_followed = False
        """Whether the steps between measured ones are followed: that has turned out to be cheap enough."""
        self._debt = 0.0  # seconds that measuring took beyond its share
        self.calm_interval = 1
        """Number of steps between measured ones in calm times: a power of two at which measuring takes its share."""

    # -- decisions --

    def begin_step(self, *, is_read: bool | None = None) -> bool:
        """Decide before an optimizer step whether it is to be measured, and return the decision.

        ``is_read`` tells whether a record will have the statistics of this step; None if that is not known.
        """
        step = self.steps + 1
        rest = math.inf if self.measured_at is None else step - self.measured_at
        if self._led is not None:
            self.is_due = rest >= self._led
        elif self.every == "auto":
            # A training that logs every tenth step does not pay for the nine that are never read.
            if is_read is None:
                is_read = step - self._log_step >= self._steps_a_log
            self.is_due = is_read and rest >= self.interval and self._is_affordable(LAYERS_PART)
        else:
            is_missed = bool(is_read) or step - self._log_step >= self._steps_a_log
            self.is_due = rest >= self.every or (is_missed and step - self._read_at >= self.every)
        return self.is_due

    def end_step(self) -> bool:
        """Count the step that has ended, and return whether it is to be measured."""
        self.steps += 1
        is_due, self.is_due = self.is_due, False
        return is_due

    @property
    def wants_histogram(self) -> bool:
        """Whether a measurement of this step is to include histograms."""
        return self._histogram_at is None or self.steps - self._histogram_at >= self._histogram_every

    @property
    def has_histogram(self) -> bool:
        """Whether the histograms of this step were measured."""
        return self._histogram_at == self.steps

    @property
    def is_dense(self) -> bool:
        """Whether every step is measured for now because of a sign or at the beginning; always False for a number."""
        part = FIRST_PART if self.steps < FIRST else DENSE_PART
        return self.every == "auto" and self.steps < self._dense_until and self._is_affordable(part)

    @property
    def _share(self) -> float:
        """Share of the training's time that layers may take in calm times."""
        part = SHARED_PART if self._budget.spent("curvature") > 0 else CALM_PART
        return min(SHARE, part * self._budget.share)

    def _is_affordable(self, part: float) -> bool:
        """Return whether ``part`` of the budget allows the next measurement; True while its cost is not known."""
        budget = self._budget
        if budget.is_brief and budget.spent("curvature") > 0.0:
            part = min(part, SHARED_PART)
        if budget.step_time > 0.0:
            return budget.allows(self.cost, "layers", part)
        # What a step takes is not known yet. A limit lets the first steps be measured, and then waits.
        return math.isinf(budget.share) or self.steps < FREE

    @property
    def interval(self) -> int:
        """Present number of steps from one measured step to the next."""
        if self.every != "auto":
            return self.every
        return 1 if self.is_dense else self.calm_interval

    # -- distributed training --

    @property
    def next_in(self) -> int:
        """Number of steps from this measured step to the next one that this process would choose."""
        if self.every != "auto":
            return self._next_of_number(self.every)
        logs = math.ceil((self.steps + self.interval - self._log_step) / self._steps_a_log)
        return max(1, self._log_step + logs * self._steps_a_log - self.steps)

    def _next_of_number(self, every: int) -> int:
        """Return ``every``, or less if a record that has waited that long for layers is expected before."""
        since = self.steps - self._log_step
        read_at = self.steps if since > 0 and since % self._steps_a_log == 0 else self._read_at
        log_in = self._steps_a_log - since % self._steps_a_log
        return min(every, log_in) if self.steps + log_in - read_at >= every else every

    def lead(self, interval: int) -> None:
        """Measure ``interval`` steps after the last measured one, whatever this process would choose by itself."""
        self._led = max(1, interval)

    # -- observations --

    def note_measured(self, *, histograms: bool) -> None:
        """Note that this step was measured, and whether its histograms were."""
        self.measured_at = self.steps
        if histograms:
            self._histogram_at = self.steps

    def note_logged(self, *, is_of_next_step: bool = False) -> int:
        """Note a measured `log`, and return the number of optimizer steps since the last one.

        ``is_of_next_step`` tells that the record belongs to the step to come instead of the last one.
        """
        advance = self.steps - self.logged_at
        self.logged_at = self.steps
        log_step = self.steps + is_of_next_step
        if log_step > self._log_step:
            self._steps_a_log, self._log_step = log_step - self._log_step, log_step
        if self.measured_at == self.steps:
            self._read_at = self.steps
        return advance

    def stir(self) -> None:
        """Note a sign: every step is measured for a while."""
        self._dense_until = max(self._dense_until, self.steps + HOLD)

    def observe_cost(self, seconds: float) -> None:
        """Take in the seconds that measuring one step took."""
        self._costs.append(seconds)
        self._debt += seconds
        if self.every == "auto":
            self._budget.spend(seconds, "layers")
        self._decide_following()
        self.calm_interval = self._affordable_interval()  # here, as medians at every step would cost it microseconds

    def wants_following(self, *, is_measured: bool) -> bool:
        """Return whether the gradient of the step that has ended is to be followed.

        A measured step that does not come right after another one is left out, as nothing follows from single steps,
        until it is known what following costs.
        """
        if self.is_followed:
            return True
        is_successive = self.measured_at is None or self.measured_at == self.steps - 1
        return is_measured and (is_successive or len(self._follow_costs) < COSTS)

    def observe_following(self, seconds: float, *, is_measured: bool) -> None:
        """Take in the seconds that following one step took.

        With ``is_measured`` they are a part of the cost of a measurement.
        """
        self._follow_costs.append(seconds)
        if not is_measured:
            self._budget.spend(seconds, "layers")
        self._decide_following()

    def _decide_following(self) -> None:
        limit = self._share * (KEEP_FOLLOWING if self.is_followed else FOLLOWING)
        is_known = len(self._follow_costs) == COSTS and len(self._step_times) >= COSTS
        self.is_followed = is_known and median(self._follow_costs) <= limit * self.step_time

    def observe_step_time(self, seconds: float) -> None:
        """Take in the seconds that a step of training took without the measuring."""
        self._budget.end_step(seconds)
        self._step_times.append(seconds)
        self._debt = max(0.0, self._debt - self._share * seconds)

    def _affordable_interval(self) -> int:
        step_time = self.step_time
        if step_time <= 0:
            return 1
        followed = median(self._follow_costs) / step_time if self.is_followed else 0.0
        affordable = self.cost / (max(self._share - followed, 0.25 * self._share) * step_time)
        if self._debt > DEBT * self._share * step_time:
            affordable *= 2.0
        return min(MAX_INTERVAL, 1 << math.ceil(math.log2(max(affordable, 1.0))))

    @property
    def cost(self) -> float:
        """Seconds that measuring one step takes; 0 if unknown."""
        return median(self._costs) if self._costs else 0.0

    @property
    def step_time(self) -> float:
        """Seconds of a training step without the measuring; 0 if unknown."""
        return median(self._step_times) if self._step_times else 0.0

    @property
    def share(self) -> float:
        """Share of the training's time that measuring takes at the present interval; 0 if unknown."""
        interval = max(self.interval, self._steps_a_log) if self.every == "auto" else self.interval
        return self.cost / (interval * self.step_time) if self.step_time > 0 else 0.0
