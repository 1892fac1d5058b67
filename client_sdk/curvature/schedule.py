"""When to spend Hessian-vector products: rarely while the run is calm, every other step while a spike may be coming.

Owns the decision and nothing else; pure, and fed only with values that have already reached the host. On recorded runs,
measuring every 10 steps instead of every 2 to 5 lost a third of the spikes and every 50 two thirds, while calm runs
need next to nothing: hence two rhythms, and a bound on what they may cost.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

Choice = Literal["none", "gradient", "full"]
"""`gradient`: λ_grad alone, one product. `full`: λ_grad and λ_max."""

NEAR_LAMBDA_MAX: Final = 0.8  # λ_max·η/2 above this: near the limit, where full batches spend much of a healthy run
ARMED_LAMBDA_GRAD: Final = 0.5  # λ_grad·η/2 above this
ARMED_DECOUPLING: Final = 0.3  # Σg²/Σv̂ below this while the gradient grows
ARMED_GROWTH: Final = 2.0  # ‖g‖ over its minimum of the last GROWTH_WINDOW measured steps
GROWTH_WINDOW: Final = 30
HOLD: Final = 50  # steps for which a reason holds after it was last seen
DENSE_EVERY: Final = 2  # steps between probes when near or armed
CALM_GRADIENTS: Final = 5  # probes of λ_grad for each `every` steps while calm
FIRST_FULL: Final = 10  # steps before the first full probe: v̂ of one gradient says nothing, 1/√v̂ is huge somewhere
MAX_BACKOFF: Final = 64  # times `every`

Urgency = Literal["calm", "near", "armed"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What full probes may take, averaged over the steps between them; those of λ_grad alone may take as much again."""

    share: float
    """Of a training step's own time."""
    least: float
    """Seconds for each step, allowed however short the step is: small models are cheap to probe and quick to spike."""


BUDGETS: Final[dict[Urgency, Budget]] = {
    "calm": Budget(share=0.1, least=0.003),
    "near": Budget(share=0.15, least=0.008),
    "armed": Budget(share=0.35, least=0.02),
}


class Schedule:
    """Decides at each `log` with a closure."""

    def __init__(self, every: int) -> None:
        """``every``: steps between full probes while nothing happens."""
        self._every = every
        self._step: int | None = None
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
        """How much there is to see."""
        step = -1 if self._step is None else self._step
        return "armed" if step < self._armed_until else "near" if step < self._near_until else "calm"

    def decide(self, step: int, lr: float | None) -> Choice:
        """What to measure at ``step``, with the learning rate now (None where it is on a device)."""
        if self._step is None or step < self._step:
            self._begin(step)
        self._step = step
        if step < self._resume_at:
            return "none"
        if step - self._last_full >= self.full_every or self._rate_rose(lr):
            return "full"
        return "gradient" if step - self._last_gradient >= self.gradient_every else "none"

    def started(self, choice: Choice, step: int) -> None:
        """A probe is made at ``step``."""
        self._last_gradient = step
        if choice == "full":
            self._last_full = step

    def failed(self, step: int) -> None:
        """The probe gave nothing: wait, twice as long each time."""
        self._resume_at = max(self._resume_at, step + self._every * 2**self._backoff)
        self._backoff = min(self._backoff + 1, MAX_BACKOFF.bit_length() - 1)

    def observe_curvature(self, step: int, lr: float, lambda_max: float | None, lambda_grad: float) -> None:
        """The values of the probe at ``step``, where the learning rate was ``lr``, have reached the host."""
        self._backoff, self._resume_at = 0, -1
        limit = 2.0 / lr if lr > 0 else math.inf
        if lambda_max is not None:
            self._lambda_max, self._measured_lr = lambda_max, lr
            if lambda_max > NEAR_LAMBDA_MAX * limit:
                self._near_until = step + HOLD
        if lambda_grad > ARMED_LAMBDA_GRAD * limit:
            self._armed_until = step + HOLD

    def observe_gradient(self, grad_norm: float, decoupling: float) -> None:
        """A step's statistics have reached the host; ``decoupling`` is NaN without a second moment."""
        if not math.isfinite(grad_norm):
            return
        self._gradients.append(grad_norm)
        is_growing = len(self._gradients) >= 3 and grad_norm > ARMED_GROWTH * min(self._gradients)
        if decoupling < ARMED_DECOUPLING and is_growing and self._step is not None:
            self._armed_until = self._step + HOLD

    def observe_cost(self, choice: Choice, seconds: float) -> None:
        """What a probe took."""
        self._costs[choice].append(seconds)

    def observe_step_time(self, seconds: float) -> None:
        """What a training step took by itself."""
        self._step_times.append(seconds)

    @property
    def full_every(self) -> int:
        """Steps between full probes at present."""
        rhythm = self._every if self.urgency == "calm" else min(DENSE_EVERY, self._every)
        return max(rhythm, self._affordable("full"))

    @property
    def gradient_every(self) -> int:
        """Steps between probes of λ_grad at present."""
        rhythm = self._every // CALM_GRADIENTS if self.urgency == "calm" else DENSE_EVERY
        return max(rhythm, DENSE_EVERY, self._affordable("gradient"))

    def _affordable(self, choice: Choice) -> int:
        """Steps between probes at which they take no more than their share of the training itself."""
        if not self._costs[choice]:
            return 1
        budget = BUDGETS[self.urgency]
        step_time = median(self._step_times) if self._step_times else 0.0
        return math.ceil(median(self._costs[choice]) / max(budget.least, budget.share * step_time))

    def _rate_rose(self, lr: float | None) -> bool:
        """True where the last λ_max, harmless when it was measured, is near the limit of a learning rate that rose."""
        if lr is None or self._lambda_max is None or lr <= self._measured_lr:
            return False
        near = 2.0 * NEAR_LAMBDA_MAX / self._lambda_max if self._lambda_max > 0 else math.inf
        return self._measured_lr <= near < lr

    def _begin(self, step: int) -> None:
        """The first step, or an earlier one than the last."""
        self._last_full = step + FIRST_FULL - self._every if self._every > FIRST_FULL else step - self._every
        self._last_gradient = step
        self._near_until = self._armed_until = self._resume_at = -1
        self._lambda_max = None
        self._gradients.clear()
