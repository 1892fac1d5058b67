"""When to spend Hessian-vector products: rarely while the run is calm, every other step while a spike may be coming.

Owns the decision and nothing else; pure, and fed only with values that have already reached the host. On recorded runs,
measuring every 10 steps instead of every 2 to 5 lost a third of the spikes and every 50 two thirds, while calm runs
need next to nothing: hence two rhythms, and a bound on what they may cost.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Final, Literal

Choice = Literal["none", "gradient", "full"]
"""`gradient`: λ_grad alone, one product. `full`: λ_grad and λ_max."""

ARMED_LAMBDA_MAX: Final = 0.8  # λ_max·η/2 above this
ARMED_LAMBDA_GRAD: Final = 0.5  # λ_grad·η/2 above this
ARMED_DECOUPLING: Final = 0.3  # Σg²/Σv̂ below this while the gradient grows
ARMED_GROWTH: Final = 2.0  # ‖g‖ over its minimum of the last GROWTH_WINDOW measured steps
GROWTH_WINDOW: Final = 30
HOLD: Final = 50  # steps for which it stays armed after the last reason
ARMED_EVERY: Final = 2  # steps
CALM_GRADIENTS: Final = 5  # probes of λ_grad for each `every` steps while calm
SHARE: Final = 0.35  # of a training step that full probes may take, averaged over the steps between them
GRADIENT_SHARE: Final = 0.35  # the same for λ_grad alone while armed
CALM_SHARE: Final = 0.1  # the same while calm
SHORTEST_STEP: Final = 0.025  # seconds; shorter steps count as this long: on small models a probe is always affordable
MAX_BACKOFF: Final = 64  # times `every`


class Schedule:
    """Decides at each `log` with a closure."""

    def __init__(self, every: int) -> None:
        """``every``: steps between full probes while nothing happens."""
        self._every = every
        self._last_step: int | None = None
        self._last_full: int | None = None
        self._last_gradient: int | None = None
        self._armed_until = -1
        self._lambda_max: float | None = None
        self._lambda_grad: float | None = None
        self._gradients: deque[float] = deque(maxlen=GROWTH_WINDOW)
        self._is_decoupled_growth = False
        self._costs: dict[Choice, deque[float]] = {"gradient": deque(maxlen=5), "full": deque(maxlen=5)}
        self._step_times: deque[float] = deque(maxlen=9)
        self._backoff = 0
        self._resume_at: int | None = None

    @property
    def is_armed(self) -> bool:
        """True while probes come in quick succession."""
        return self._last_step is not None and self._last_step <= self._armed_until

    def decide(self, step: int, lr: float | None) -> Choice:
        """What to measure at ``step``, with the learning rate now (None where it is on a device)."""
        if self._last_step is not None and step < self._last_step:
            self._restart()
        self._last_step = step
        if lr is not None and self._has_reason(lr):
            self._armed_until = step + HOLD
        if self._resume_at is not None and step < self._resume_at:
            return "none"
        if _is_due(step, self._last_full, self.full_every):
            return "full"
        return "gradient" if _is_due(step, self._last_gradient, self.gradient_every) else "none"

    def started(self, choice: Choice, step: int) -> None:
        """A probe is made at ``step``."""
        self._last_gradient = step
        if choice == "full":
            self._last_full = step

    def failed(self, step: int) -> None:
        """The probe gave nothing: wait, twice as long each time."""
        self._resume_at = step + self._every * 2**self._backoff
        self._backoff = min(self._backoff + 1, MAX_BACKOFF.bit_length() - 1)

    def observe_curvature(self, lambda_max: float | None, lambda_grad: float | None) -> None:
        """A probe's values have reached the host."""
        self._backoff, self._resume_at = 0, None
        if lambda_max is not None:
            self._lambda_max = lambda_max
        if lambda_grad is not None:
            self._lambda_grad = lambda_grad

    def observe_gradient(self, grad_norm: float, decoupling: float) -> None:
        """A step's statistics have reached the host; ``decoupling`` is NaN without a second moment."""
        if not math.isfinite(grad_norm):
            return
        self._gradients.append(grad_norm)
        is_growing = len(self._gradients) >= 3 and grad_norm > ARMED_GROWTH * min(self._gradients)
        self._is_decoupled_growth = decoupling < ARMED_DECOUPLING and is_growing

    def observe_cost(self, choice: Choice, seconds: float) -> None:
        """What a probe took."""
        self._costs[choice].append(seconds)

    def observe_step_time(self, seconds: float) -> None:
        """What a training step took by itself."""
        self._step_times.append(seconds)

    @property
    def full_every(self) -> int:
        """Steps between full probes at present."""
        rhythm = min(ARMED_EVERY, self._every) if self.is_armed else self._every
        return max(rhythm, self._affordable("full", SHARE))

    @property
    def gradient_every(self) -> int:
        """Steps between probes of λ_grad at present."""
        if self.is_armed:
            return max(ARMED_EVERY, self._affordable("gradient", GRADIENT_SHARE))
        return max(ARMED_EVERY, self._every // CALM_GRADIENTS, self._affordable("gradient", CALM_SHARE))

    def _affordable(self, choice: Choice, share: float) -> int:
        """Steps between probes at which they take no more than ``share`` of the training itself."""
        if not self._costs[choice]:
            return 1
        step_time = max(SHORTEST_STEP, median(self._step_times) if self._step_times else 0.0)
        return math.ceil(median(self._costs[choice]) / (share * step_time))

    def _has_reason(self, lr: float) -> bool:
        limit = math.inf if lr <= 0 else 2.0 / lr
        return (
            self._is_decoupled_growth
            or (self._lambda_max is not None and self._lambda_max > ARMED_LAMBDA_MAX * limit)
            or (self._lambda_grad is not None and self._lambda_grad > ARMED_LAMBDA_GRAD * limit)
        )

    def _restart(self) -> None:
        """The run went back to an earlier step."""
        self._last_full = self._last_gradient = self._resume_at = None
        self._armed_until = -1
        self._gradients.clear()


def _is_due(step: int, last: int | None, every: int) -> bool:
    return last is None or step - last >= every
