"""Schedule of the curvature: which measurement is due at a step, within the budget of the `watch`.

Owns the decision only; pure, and updated only with values that have already reached the host. At each step at most one
measurement is made, which takes about one Hessian-vector product. On recorded runs, reading λ_max every 10 steps
instead of every 2 to 5 lost a third of the spikes, and every 50 steps two thirds, whereas calm runs need very few
readings. So there are two intervals, and a budget that keeps them longer where a product is dear beside a step.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Final, Literal

from client_sdk.budget import WINDOW, Budget
from client_sdk.optimizers import stability_ratio

Choice = Literal["none", "gradient", "track", "both", "reading"]
"""The next measurement: `gradient` measures λ_grad, and `track` spends one product on λ_max (see `Tracking`).

`both` measures λ_grad and reads λ_max with as many products as that takes. Only a large budget allows it, or a training
whose steps are brief, which also has `reading`: the same without λ_grad.
"""

Cost = Literal["gradient", "track", "both", "reading", "step"]
"""A measurement that takes time: one of the choices, or λ_step in addition to it."""

NEAR_LAMBDA_MAX: Final = 0.8  # λ_max·η/2 above which a run is near the limit, as healthy full-batch runs often are
ARMED_LAMBDA_GRAD: Final = 0.5  # λ_grad·η/2 above which a run is armed
ARMED_DECOUPLING: Final = 0.3  # Σg²/Σv̂ below which growth of the gradient arms
ARMED_GROWTH: Final = 2.0  # growth of ‖g‖ over its minimum of the last GROWTH_WINDOW measured steps that arms
GROWTH_WINDOW: Final = 30  # measured steps
HOLD: Final = 50  # steps for which a reason holds after it was last seen
DENSE_EVERY: Final = 2  # steps between readings when near or armed
CALM_GRADIENTS: Final = 5  # measurements of λ_grad in `every` steps while calm
FIRST_TRACKED: Final = 10  # steps before λ_max is tracked, because v̂ of one gradient makes 1/√v̂ huge somewhere
MAX_BACKOFF: Final = 64  # multiples of `every`
SCARCE_STEPS: Final = 20  # steps between products from which on they are scarce
STEPS_ALIKE: Final = 4  # measurements of which one is given λ_step while the run is calm and the budget is limited
UNKNOWN_COST: Final[dict[Cost, float]] = {"gradient": 4.0, "track": 4.0, "both": 8.0, "reading": 5.5, "step": 1.5}
"""Step times that a measurement is assumed to take before one has been made."""

MARGIN: Final = 1.1  # on the longest of the last measurements of a kind, which the next one may exceed
LONGEST: Final = 1.5  # times their median, for which the longest counts at most
FORGETTING: Final = 0.8  # factor on the costs after a window without a measurement, so that it is tried again
PRODUCT_MORE: Final = 1.4  # times a reading, which the first one with λ_grad may take
LARGE_BUDGET: Final = 1.0  # share of the training's time from which on a record may pay for several products

RESERVE: Final = 0.08  # part of the budget that no measurement plans with, as the steps to come may be shorter
DECIDING: Final = 0.1  # part of the budget that deciding may take while nothing is due
RESTS: Final = (8, 4, 2)  # records after which the next decision is made, the longest first
WHOLE: Final = 0.9  # part of the budget of a window that one reading may take

Urgency = Literal["calm", "near", "armed"]
"""State of a run that decides the interval and the pace of its measurements, in increasing order of urgency."""

PACE: Final[dict[Urgency, float]] = {"calm": 1.25, "near": 1.1, "armed": 0.5}
"""Least steps between measurements over those at which they would use the whole budget.

While a run is not armed a part of the budget is left for when it will be. An armed run may use what was left.
"""

TRACKS_A_GRADIENT: Final = 4  # products for λ_max to one for λ_grad, while the run is calm and the budget is limited


class Schedule:
    """Decision at each `log` with a closure whether to measure the curvature, and how."""

    def __init__(self, every: int, budget: Budget, *, reads_at_point: bool = False) -> None:
        """Start with ``every`` steps between readings of λ_max while the run is calm and ``budget`` allows it.

        With ``reads_at_point``, a training with brief steps is read by several products at one record.
        """
        self._every = every
        self._budget = budget
        self.reads_at_point = reads_at_point
        """Whether a record may pay for several products if the steps of the training are brief."""
        self._step: int | None = None
        self._gap = 1  # steps between the last two decisions
        self._last_reading = self._last_gradient = self._last = 0
        self._tracks = 0  # products for λ_max since the last one for λ_grad
        self._is_round_open = False
        self._near_until = self._armed_until = -1
        self._readings: deque[tuple[int, float]] = deque(maxlen=2)  # steps, and log(λ_max·η/2)
        self._lambda_max: float | None = None
        self._measured_lr = 0.0
        self._gradients: deque[float] = deque(maxlen=GROWTH_WINDOW)
        # In times of a training step, as both take longer on a busy machine.
        self._costs: dict[Cost, deque[float]] = {kind: deque(maxlen=5) for kind in UNKNOWN_COST}
        self._usual = dict(UNKNOWN_COST)  # medians of these, as a median at every step would cost microseconds
        self._forgot_at = 0
        self._may_rest = True
        self._measurements = 0
        self._backoff = 0
        self._resume_at = -1

    @property
    def urgency(self) -> Urgency:
        """Urgency of the run at the last step."""
        step = -1 if self._step is None else self._step
        return "armed" if step < self._armed_until else "near" if step < self._near_until else "calm"

    # -- decisions --

    def decide(self, step: int, lr: float | None) -> Choice:
        """Return what is due at ``step``; ``lr`` is the learning rate, or None if it is kept on a device."""
        if self._step is None or step < self._step:
            self._begin(step)
        elif step > self._step:
            self._gap = step - self._step
        self._step = step
        if step - max(self._last, self._forgot_at) >= WINDOW:
            self._forget_costs(step)
        return self._due(step, lr)

    def records_to_rest(self, lr: float | None, seconds: float) -> int:
        """Return the number of records from now on at which nothing is due, if deciding takes long beside a step.

        A decision takes ``seconds``. Made at each record, it would take a good part of the budget of brief steps, and
        more than all of it on a busy machine.
        """
        allowed = DECIDING * self._budget.share * self._budget.step_time
        if self._step is None or not self._may_rest or not 0.0 < allowed < seconds:
            return 0
        for records in RESTS:
            is_longer = records > RESTS[-1] and records >= 2.0 * seconds / allowed
            if not is_longer and self._due(self._step + records * self._gap, lr) == "none":
                return records - 1
        return 0

    def decide_together(self) -> None:
        """Decide at every record from now on, and spread products over the records, as several ranks do."""
        self._may_rest = self.reads_at_point = False

    def pass_by(self, step: int) -> None:
        """Note a `log` at ``step`` at which nothing is due, as `records_to_rest` said."""
        if self._step is not None and step > self._step:
            self._gap = step - self._step
        self._step = step

    def expects(self, lr: float | None) -> bool:
        """Return whether something will be due at the next `log`, if the steps of the calls go on as they did."""
        return self._step is not None and self._due(self._step + self._gap, lr) != "none"

    @property
    def wants_step(self) -> bool:
        """Whether the next measurement is to be given λ_step as well."""
        if self.is_brief and self.is_rare:
            return False  # λ_max is worth more
        is_turn = self.urgency != "calm" or math.isinf(self._budget.share)
        is_turn = is_turn or (self._measurements % STEPS_ALIKE == 0 and not self.is_scarce)
        return is_turn and self._budget.allows(self.cost("track") + self.cost("step"))

    def _due(self, step: int, lr: float | None) -> Choice:
        if step < self._resume_at:
            return "none"
        is_crossing = self._rate_rose(lr) or self._is_crossing_expected(step)
        track = is_crossing or self._is_round_open or step - self._last_reading >= self.reading_every
        if self.is_brief:
            if not track:
                return "none"
            is_turn = self._tracks >= TRACKS_A_GRADIENT or not self.is_rare
            if is_turn and self._lambda_max is not None and self._is_affordable(step, "both", is_crossing):
                return "both"
            return "reading" if self._is_affordable(step, "reading", is_crossing) else "none"
        gradient = step - self._last_gradient >= self.gradient_every
        if track and self._budget.share >= LARGE_BUDGET and self._is_affordable(step, "both", is_crossing):
            return "both"
        if track and gradient:
            # What a small budget allows goes to λ_max until it is known, and mostly so while the run is calm.
            enough = 1 if self.urgency != "calm" or math.isinf(self._budget.share) else TRACKS_A_GRADIENT
            gradient = self._tracks >= enough and self._lambda_max is not None
        choice: Choice = "gradient" if gradient else "track" if track else "none"
        return choice if choice != "none" and self._is_affordable(step, choice, is_crossing) else "none"

    def _is_affordable(self, step: int, choice: Cost, is_crossing: bool) -> bool:
        if not is_crossing:
            pace = PACE["armed" if self._lambda_max is None else self.urgency]
            if step - self._last < pace * (self._budget.steps_between(self.cost(choice)) - 1):
                return False
        return self._budget.allows(self._highest_cost(choice) + self._reserve)

    @property
    def allowance(self) -> float:
        """Seconds that the measurement that is due may take."""
        return max(0.0, self._budget.left() - self._reserve) if not math.isinf(self._budget.share) else math.inf

    @property
    def _reserve(self) -> float:
        share = self._budget.share
        return 0.0 if math.isinf(share) else RESERVE * share * WINDOW * self._budget.step_time

    @property
    def reading_every(self) -> int:
        """Number of steps between readings of λ_max that the urgency asks for, whatever they cost."""
        return self._every if self.urgency == "calm" else min(DENSE_EVERY, self._every)

    @property
    def gradient_every(self) -> int:
        """Number of steps between measurements of λ_grad that the urgency asks for, whatever they cost."""
        return max(self._every // CALM_GRADIENTS if self.urgency == "calm" else DENSE_EVERY, DENSE_EVERY)

    @property
    def is_scarce(self) -> bool:
        """Whether the budget allows a product only now and then."""
        return self._budget.steps_between(self.cost("track")) > SCARCE_STEPS

    @property
    def is_rare(self) -> bool:
        """Whether the budget allows a whole reading only now and then."""
        return self._budget.steps_between(self.cost("reading")) > SCARCE_STEPS

    @property
    def is_brief(self) -> bool:
        """Whether a record that is measured at all gets a whole reading of λ_max."""
        if not self.reads_at_point or not self._budget.is_brief:
            return False
        return self.cost("reading") <= WHOLE * self._budget.share * WINDOW * self._budget.step_time

    @property
    def reading_steps(self) -> float:
        """Time of what reads λ_max, which is one tracked product or a whole reading, in times of a training step."""
        return self._usual["reading" if self.is_brief else "track"]

    @property
    def is_beyond_budget(self) -> bool:
        """Whether a single product has been found to take more than the budget of a whole window."""
        return bool(self._costs["track"]) and self._usual["track"] > self._budget.share * WINDOW

    def cost(self, kind: Cost) -> float:
        """Return the seconds that a measurement is expected to take."""
        return self._usual[kind] * self._budget.step_time

    def _highest_cost(self, kind: Cost) -> float:
        """Return the seconds that a measurement hardly exceeds, as its cost varies with what else the machine does."""
        costs, usual = self._costs[kind], self._usual[kind]
        if kind == "both" and not costs:  # it is a reading and one more product
            usual = max(usual, PRODUCT_MORE * max(self._costs["reading"], default=0.0))
        return MARGIN * min(max(costs, default=usual), LONGEST * usual) * self._budget.step_time

    def _rate_rose(self, lr: float | None) -> bool:
        """Return whether a rise of the learning rate has brought the last, then harmless, λ_max near the limit."""
        if lr is None or self._lambda_max is None or lr <= self._measured_lr:
            return False
        near = 2.0 * NEAR_LAMBDA_MAX / self._lambda_max if self._lambda_max > 0 else math.inf
        return self._measured_lr <= near < lr

    def _is_crossing_expected(self, step: int) -> bool:
        """Return whether λ_max, extrapolated from its last two readings, has crossed the limit since the last one."""
        if len(self._readings) < 2:
            return False
        (first, before), (last, now) = self._readings
        growth = (now - before) / (last - first)
        return now < 0 <= now + growth * (step - last)

    # -- observations --

    def started(self, choice: Choice, step: int) -> None:
        """Note that a measurement has started at ``step``."""
        self._last = step
        is_without_gradient = choice in ("track", "reading")
        self._tracks = self._tracks + 1 if is_without_gradient else 0
        self._measurements += 1
        if not is_without_gradient:
            self._last_gradient = step
        if choice == "track":
            self._is_round_open = True

    def round_ended(self, step: int) -> None:
        """Note that the round of products whose last one started at ``step`` has ended."""
        self._is_round_open = False
        self._last_reading = step

    def failed(self, step: int) -> None:
        """Note that the measurement at ``step`` failed, which doubles the wait before the next one."""
        self._resume_at = max(self._resume_at, step + self._every * 2**self._backoff)
        self._backoff = min(self._backoff + 1, MAX_BACKOFF.bit_length() - 1)

    def succeeded(self) -> None:
        """Note that a measurement gave finite values."""
        self._backoff, self._resume_at = 0, -1

    def observe_lambda_max(self, step: int, lr: float, lambda_max: float) -> None:
        """Take in the reading of ``step``, where the learning rate was ``lr``."""
        self._lambda_max, self._measured_lr = lambda_max, lr
        if not lr > 0:
            return
        ratio = stability_ratio(lambda_max, lr)
        if ratio > NEAR_LAMBDA_MAX:
            self._near_until = step + HOLD
        if ratio > 0 and not (self._readings and self._readings[-1][0] >= step):
            self._readings.append((step, math.log(ratio)))

    def observe_lambda_grad(self, step: int, lr: float, lambda_grad: float) -> None:
        """Take in the λ_grad of ``step``, where the learning rate was ``lr``."""
        if stability_ratio(lambda_grad, lr) > ARMED_LAMBDA_GRAD:
            self._armed_until = step + HOLD

    def observe_gradient(self, grad_norm: float, decoupling: float) -> None:
        """Take in the statistics of a step; ``decoupling`` is NaN without a second moment."""
        if not math.isfinite(grad_norm):
            return
        self._gradients.append(grad_norm)
        is_growing = len(self._gradients) >= 3 and grad_norm > ARMED_GROWTH * min(self._gradients)
        if decoupling < ARMED_DECOUPLING and is_growing and self._step is not None:
            self._armed_until = self._step + HOLD

    def observe_cost(self, kind: Cost, seconds: float) -> None:
        """Take in the seconds that a measurement took."""
        if self._budget.step_time > 0.0:
            self._costs[kind].append(seconds / self._budget.step_time)
            self._usual[kind] = median(self._costs[kind])

    def _forget_costs(self, step: int) -> None:
        """Reduce the known costs, which may have been exceptions that keep anything from being measured again."""
        self._forgot_at = step
        for kind, costs in self._costs.items():
            if costs:
                self._costs[kind] = deque([FORGETTING * cost for cost in costs], maxlen=costs.maxlen)
                self._usual[kind] = median(self._costs[kind])

    def _begin(self, step: int) -> None:
        """Start over, at the first step or when the run steps back."""
        self._last_reading = step + FIRST_TRACKED - self._every if self._every > FIRST_TRACKED else step - self._every
        self._last_gradient = self._last = self._forgot_at = step
        self._tracks, self._is_round_open = 0, False
        self._near_until = self._armed_until = self._resume_at = -1
        self._lambda_max = None
        self._readings.clear()
        self._gradients.clear()
