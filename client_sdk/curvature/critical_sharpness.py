"""Critical sharpness λ_c = 2/η_c: η_c is the shortest step along the optimizer's update that raises the loss.

Owns the trials of a step, from losses alone: neither a gradient nor a second derivative is taken. `RiseSearch` chooses
their lengths. Source: Kalra et al. 2026, arXiv 2601.16979. On a quadratic loss λ_c = uᵀHu/gᵀu, which is the value of
λ_step; on any other loss it sees the wall that a step of finite length meets. λ_c > 2/η exactly if the step that was
made, or a shorter one, raised the loss of the closure's batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from torch import Tensor

from client_sdk.curvature.rise_search import Change, RiseSearch, Trial
from client_sdk.curvature.sandbox import Derivatives, Sandbox
from client_sdk.curvature.step_line import MadeStep, StepLine
from client_sdk.curvature.step_probe import StepSnapshot

Outcome = Literal["measured", "searching", "flat", "no-descent", "no-step", "rounded", "not-finite"]
"""The result of a search in one word.

`measured`: both ends of the bracket, and a length at which the loss falls. `searching`: one of these is still missing.
`flat`: no length up to `FURTHEST` times that of the weights raises the loss. `no-descent`: already short lengths raise
it, so the update is no direction of descent on this batch. `no-step`: the step did not move the weights, or η is 0.
`rounded`: the changes of the loss or of the weights are lost in rounding. `not-finite`: the loss before the step is NaN
or infinite.
"""

TOLERANCE: Final = 0.05  # relative width of the bracket at which a reading is good enough
MOST_FORWARDS: Final = 12  # of one reading; three to six are usual after the first
FURTHEST: Final = 100.0  # length of a step relative to that of the weights up to which a rise is searched
SHORT: Final = 0.1  # length relative to the step that was made which must be tried before a direction is called uphill
SHORTEST: Final = 1e-6  # the same for directions whose slopes say nothing
ROUNDING: Final = 4  # units of rounding of the loss within which a change counts as none
SAME_LOSS: Final = 1e-6  # relative difference of the loss before the step below which the batch is the same


@dataclass(frozen=True, kw_only=True)
class CriticalReading:
    """Result of a search, or of the part of it that has been made."""

    outcome: Outcome
    sharpness: float | None
    """λ_c = 2/η_c, to compare with 2/η, or None unless ``outcome`` is measured."""
    error: float
    """Width of the bracket relative to η_c; infinity as long as an end is missing."""
    lower: float
    """Longest step length, in the units of η, that was found not to raise the loss; 0 if there is none."""
    upper: float
    """Shortest step length that was found to raise the loss; infinity if there is none."""
    loss: float
    """Loss of the closure at the weights before the step."""
    lr: float
    """Learning rate η of the step."""
    forwards: int
    """Number of evaluations of the closure in this call."""
    age: int
    """Number of calls since the search of this step began; 0 in the first."""
    is_done: bool
    """Whether the search of this step is over."""


class CriticalSharpness:
    """Readings of λ_c, each of which starts from the last η_c.

    The closure is evaluated at the weights before a step plus multiples of the step. Losses are read on the host,
    because the next length depends on them: on CUDA every evaluation waits for the device. The present weights have
    their own bits again when a method returns.

    Not thread-safe; used on the training thread.
    """

    def __init__(self, *, mean: Callable[[Tensor], Tensor] | None = None) -> None:
        """Prepare readings. ``mean`` averages a small vector over the processes of a training.

        With several processes each of them must make the same calls, and ``mean`` lets all of them find the same value.
        """
        self._mean = mean
        self._known: float | None = None  # the last η_c
        self._derivatives: Derivatives = 0  # 1 if the closure takes gradients itself
        self._is_repeatable = False  # whether two evaluations at the same weights had the same loss
        self._step: MadeStep | None = None  # the step whose search `advance` has not finished
        self._search = RiseSearch(tolerance=TOLERANCE)
        self._loss = math.nan  # loss before the step in the last call for it
        self._age = 0

    @property
    def needs_step(self) -> bool:
        """Whether the next call of `advance` begins with a new step, for which the weights before it must be kept."""
        return self._step is None

    def measure(
        self, sandbox: Sandbox, closure: Callable[[], Any], step: StepSnapshot, *, forwards: int = MOST_FORWARDS
    ) -> CriticalReading:
        """Search along ``step``, whose end are the present weights, with at most ``forwards`` evaluations.

        ``sandbox`` is entered and protects the parameters of the step. Raises `ClosureError` if the closure is
        unusable; its loss needs no graph.
        """
        reading = self._read(self._begin(sandbox, step), sandbox, closure, forwards)
        self.abandon()
        return reading

    def advance(
        self, sandbox: Sandbox, closure: Callable[[], Any], step: StepSnapshot | None, *, forwards: int = 2
    ) -> CriticalReading | None:
        """Spread one search over several calls with ``forwards`` evaluations each, at least 2.

        Two forwards take less time than a gradient. The search stays on the step with which it began until it is done,
        and keeps the weights at both ends of it, so it is right although the training goes on. ``step`` is taken if
        `needs_step`, and the result is None if it is None then. One of the evaluations is the loss before the step: if
        it has changed, because the closure has another batch, the bracket is kept and the slopes are not. Raises
        `ClosureError` as `measure` does.
        """
        made = self._step
        if made is None:
            if step is None:
                return None
            made = self._begin(sandbox, step)
        reading = self._read(made, sandbox, closure, forwards)
        if reading.is_done:
            self.abandon()
        return reading

    def abandon(self) -> None:
        """Give up the unfinished search and free the weights that it keeps."""
        self._step = None

    def _begin(self, sandbox: Sandbox, step: StepSnapshot) -> MadeStep:
        self._step = MadeStep.read(step, sandbox)
        self._search = RiseSearch(tolerance=TOLERANCE, guess=self._known)
        self._loss, self._age = math.nan, -1
        return self._step

    def _read(self, made: MadeStep, sandbox: Sandbox, closure: Callable[[], Any], forwards: int) -> CriticalReading:
        line = StepLine(sandbox, closure, made, mean=self._mean, derivatives=self._derivatives)
        self._age += 1
        try:
            outcome = self._search_along(line, forwards)
        except BaseException:
            self.abandon()
            raise
        finally:
            self._derivatives = line.derivatives
            sandbox.restore_weights()
        return self._reading(line, outcome)

    def _search_along(self, line: StepLine, forwards: int) -> Outcome | None:
        """Make trials until the search is over, and return why it cannot go on, or None."""
        line.evaluate_origin()
        if not math.isfinite(line.loss):
            return "not-finite"
        if not (line.lr > 0.0 and line.movement > 0.0):
            return "no-step"
        if not self._is_repeatable:
            line.check_repeated()
            self._is_repeatable = True
        if not abs(line.loss - self._loss) <= SAME_LOSS * abs(line.loss):
            self._search.forget_slopes()
        self._loss = line.loss
        furthest = line.lr * max(1.0, FURTHEST * line.weights / line.movement)
        while line.forwards < forwards:
            found = line.rise(min(self._search.propose(line.lr), furthest))
            if found is None:
                return "rounded"
            trial = _trial(*found, even=ROUNDING * line.rounding * abs(line.loss))
            self._search.observe(trial)
            outcome = self._judge(trial, line.lr, furthest)
            if outcome is not None or self._search.is_done:
                return outcome
        return None

    def _judge(self, trial: Trial, lr: float, furthest: float) -> Outcome | None:
        """Return the outcome if the search cannot go on after ``trial``."""
        search = self._search
        if math.isinf(search.upper):
            return "flat" if trial.length >= 0.99 * furthest else None
        if search.has_fallen:
            return None
        is_uphill = search.is_ascent and (trial.change == "even" or search.upper <= SHORT * lr)
        if is_uphill or search.upper <= SHORTEST * lr:
            return "no-descent"
        return "rounded" if search.is_shallow else None

    def _reading(self, line: StepLine, outcome: Outcome | None) -> CriticalReading:
        search = self._search
        value = search.value if outcome is None and search.has_fallen else None
        self._known = self._known if value is None else value
        return CriticalReading(
            outcome=outcome or ("searching" if value is None else "measured"),
            sharpness=None if value is None else 2.0 / value,
            error=search.error,
            lower=search.lower,
            upper=search.upper,
            loss=line.loss,
            lr=line.lr,
            forwards=line.forwards,
            age=self._age,
            is_done=outcome is not None or search.is_done,
        )


def _trial(length: float, rise: float, *, even: float) -> Trial:
    change: Change = "even" if abs(rise) <= even else "fell" if rise < 0.0 else "rose"
    return Trial(length, change, rise / length if math.isfinite(rise) else math.inf)
