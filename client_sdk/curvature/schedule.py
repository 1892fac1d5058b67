"""Schedule of the curvature probes: rare while the run is calm, every other step while a spike may be coming.

Owns the decision only; pure, and updated only with values that have already reached the host. On recorded runs, probing
every 10 steps instead of every 2 to 5 lost a third of the spikes, and every 50 steps two thirds, whereas calm runs need
very few probes. So there are two intervals, and a bound on the cost of each.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

Choice = Literal["none", "gradient", "full"]
"""Kind of the next probe: `gradient` measures λ_grad alone with one product, `full` measures λ_grad and λ_max."""

NEAR_LAMBDA_MAX: Final = 0.8  # λ_max·η/2 above which a run is near the limit, as healthy full-batch runs often are
ARMED_LAMBDA_GRAD: Final = 0.5  # λ_grad·η/2 above which a run is armed
ARMED_DECOUPLING: Final = 0.3  # Σg²/Σv̂ below which growth of the gradient arms
ARMED_GROWTH: Final = 2.0  # growth of ‖g‖ over its minimum of the last GROWTH_WINDOW measured steps that arms
GROWTH_WINDOW: Final = 30  # measured steps
HOLD: Final = 50  # steps for which a reason holds after it was last seen
DENSE_EVERY: Final = 2  # steps between probes when near or armed
CALM_GRADIENTS: Final = 5  # probes of λ_grad in `every` steps while calm
FIRST_FULL: Final = 10  # steps before the first full probe, because v̂ of one gradient makes 1/√v̂ huge somewhere
MAX_BACKOFF: Final = 64  # multiples of `every`

Urgency = Literal["calm", "near", "armed"]
"""State of a run that decides the interval and the budget of its probes, in increasing order of urgency."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Time that full probes may take, averaged over the steps between them; probes of λ_grad alone have the same."""

    share: float
    """Share of a training step's own time."""
    min_seconds: float
    """Seconds per step that are always allowed, because small models are cheap to probe and quick to spike."""


BUDGETS: Final[dict[Urgency, Budget]] = {
    "calm": Budget(share=0.1, min_seconds=0.003),
    "near": Budget(share=0.15, min_seconds=0.008),
    "armed": Budget(share=0.35, min_seconds=0.02),
}
"""Budget of the probes in each state of a run."""


class Schedule:
    """Decision at each `log` with a closure whether to probe the curvature, and how."""

    def __init__(self, every: int) -> None:
        """Start with ``every`` steps between full probes while the run is calm."""
        self._every = every
        self._step: int | None = None
        self._gap = 1  # steps between the last two decisions
        self._last_full = self._last_gradient = 0
        self._near_until = self._armed_until = -1
        self._lambda_max: float | None = None
        self._measured_lr = 0.0
        self._gradients: deque[float] = deque(maxlen=GROWTH_WINDOW)
        self._costs: dict[Choice, deque[float]] = {"gradient": deque(maxlen=5), "full": deque(maxlen=5)}
        self._step_times: deque[float] = deque(maxlen=9)
        self._backoff = 0
        self._resume_at = -1

    @property
    def urgency(self) -> Urgency:
        """Urgency of the run at the last step."""
        step = -1 if self._step is None else self._step
        return "armed" if step < self._armed_until else "near" if step < self._near_until else "calm"

    def decide(self, step: int, lr: float | None) -> Choice:
        """Return the probe that is due at ``step``; ``lr`` is the learning rate, or None if it is kept on a device."""
        if self._step is None or step < self._step:
            self._begin(step)
        elif step > self._step:
            self._gap = step - self._step
        self._step = step
        return self._due(step, lr)

    def expects_probe(self, lr: float | None) -> bool:
        """Return whether a probe will be due at the next `log`, if the steps of the calls go on as they did."""
        return self._step is not None and self._due(self._step + self._gap, lr) != "none"

    def _due(self, step: int, lr: float | None) -> Choice:
        if step < self._resume_at:
            return "none"
        if step - self._last_full >= self.full_every or self._rate_rose(lr):
            return "full"
        return "gradient" if step - self._last_gradient >= self.gradient_every else "none"

    def started(self, choice: Choice, step: int) -> None:
        """Note that a probe has started at ``step``."""
        self._last_gradient = step
        if choice == "full":
            self._last_full = step

    def failed(self, step: int) -> None:
        """Note that the probe at ``step`` failed, which doubles the wait before the next one."""
        self._resume_at = max(self._resume_at, step + self._every * 2**self._backoff)
        self._backoff = min(self._backoff + 1, MAX_BACKOFF.bit_length() - 1)

    def observe_curvature(self, step: int, lr: float, lambda_max: float | None, lambda_grad: float) -> None:
        """Take in the values of the probe at ``step``, where the learning rate was ``lr``."""
        self._backoff, self._resume_at = 0, -1
        limit = 2.0 / lr if lr > 0 else math.inf
        if lambda_max is not None:
            self._lambda_max, self._measured_lr = lambda_max, lr
            if lambda_max > NEAR_LAMBDA_MAX * limit:
                self._near_until = step + HOLD
        if lambda_grad > ARMED_LAMBDA_GRAD * limit:
            self._armed_until = step + HOLD

    def observe_gradient(self, grad_norm: float, decoupling: float) -> None:
        """Take in the statistics of a step; ``decoupling`` is NaN without a second moment."""
        if not math.isfinite(grad_norm):
            return
        self._gradients.append(grad_norm)
        is_growing = len(self._gradients) >= 3 and grad_norm > ARMED_GROWTH * min(self._gradients)
        if decoupling < ARMED_DECOUPLING and is_growing and self._step is not None:
            self._armed_until = self._step + HOLD

    def observe_cost(self, choice: Choice, seconds: float) -> None:
        """Take in the seconds that a probe took."""
        self._costs[choice].append(seconds)

    def observe_step_time(self, seconds: float) -> None:
        """Take in the seconds that a training step took without its probes."""
        self._step_times.append(seconds)

    @property
    def full_every(self) -> int:
        """Current number of steps between full probes."""
        interval = self._every if self.urgency == "calm" else min(DENSE_EVERY, self._every)
        return max(interval, self._affordable("full"))

    @property
    def gradient_every(self) -> int:
        """Current number of steps between probes of λ_grad."""
        interval = self._every // CALM_GRADIENTS if self.urgency == "calm" else DENSE_EVERY
        return max(interval, DENSE_EVERY, self._affordable("gradient"))

    def _affordable(self, choice: Choice) -> int:
        """Return the number of steps between probes at which their cost stays within the budget."""
        if not self._costs[choice]:
            return 1
        budget = BUDGETS[self.urgency]
        step_time = median(self._step_times) if self._step_times else 0.0
        return math.ceil(median(self._costs[choice]) / max(budget.min_seconds, budget.share * step_time))

    def _rate_rose(self, lr: float | None) -> bool:
        """Return whether a rise of the learning rate has brought the last, then harmless, λ_max near the limit."""
        if lr is None or self._lambda_max is None or lr <= self._measured_lr:
            return False
        near = 2.0 * NEAR_LAMBDA_MAX / self._lambda_max if self._lambda_max > 0 else math.inf
        return self._measured_lr <= near < lr

    def _begin(self, step: int) -> None:
        """Start over, at the first step or when the run steps back."""
        self._last_full = step + FIRST_FULL - self._every if self._every > FIRST_FULL else step - self._every
        self._last_gradient = step
        self._near_until = self._armed_until = self._resume_at = -1
        self._lambda_max = None
        self._gradients.clear()
