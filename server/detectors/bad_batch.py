"""One batch that does not belong: loss and gradient jump together, in one step, out of nowhere.

Rule: in one logged step the loss leaves the noise (`spike`'s thresholds, at least +20 %) and log‖g‖ leaves its own (z
> 4 and twice its mean), while nothing had been building up: ‖g‖ was not climbing, λ_grad was under the limit, no
spike had been forecast, the learning rate and the optimizer's state were untouched. A spike of Adam's mechanism
raises the loss over several steps and is preceded by a climb; a bad batch's loss is often back at the next batch.

Where the closure gives λ_step, a step that raises the loss of its own batch (λ_step over the limit) tells for Adam's
mechanism and against bad data (99 % against 0 of 7 on recorded runs). The finding holds for 20 steps.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from server.detectors.advice import advice_after_spike
from server.detectors.robust import Window, median_and_spread
from server.detectors.signals import MARKED, Reading
from server.models import AlertKind, AlertLevel, Cause, Event, EventKind, Finding

LEAST: Final = 20
HOLD: Final = 20
CLIMBED: Final = 0.03
"""Slope of log‖g‖ a step that counts as a build-up."""


class BadBatchDetector(msgspec.Struct):
    losses: Window = msgspec.field(default_factory=lambda: Window(40))
    last_growth: float = 0.0
    """Slope of log‖g‖ before this step."""
    last_gradient_stability: float | None = None
    step: int | None = None
    baseline: float = 0.0
    loss: float = 0.0
    grad_ratio: float = 1.0
    grad_z: float = 0.0
    layers: tuple[str, ...] = ()
    layer_shares: tuple[float, ...] = ()

    def update(self, reading: Reading, explained: bool) -> bool:
        """True at the step of a bad batch. `explained`: a forecast, a learning-rate jump or a lost state accounts
        for it."""
        if self.step is not None and reading.step - self.step > HOLD:
            self.step = None
        growth, self.last_growth = self.last_growth, reading.growth
        curvature, self.last_gradient_stability = self.last_gradient_stability, reading.gradient_stability
        loss = reading.loss
        if loss is None or not math.isfinite(loss):
            return False
        if reading.grad_ratio <= MARKED or reading.grad_z <= 4:
            self.losses.push(loss)
            return False
        values = list(self.losses.values)
        self.losses.push(loss)
        if len(values) < LEAST or explained or self.step is not None:
            return False
        built_up = growth > CLIMBED or (curvature is not None and curvature > 1.0)
        own = reading.step_stability is not None and reading.step_stability > 1.0
        if built_up or own:
            return False
        baseline, spread = median_and_spread(values)
        steady = values[-1] <= baseline + 4 * max(spread, 0.02 * abs(baseline))
        rise = loss - baseline
        jumped = rise > max(8 * spread, 0.2 * abs(baseline)) and rise > 1e-3 * max(values)
        if not (jumped and steady):
            return False
        self.step, self.baseline, self.loss = reading.step, baseline, loss
        self.grad_ratio, self.grad_z = reading.grad_ratio, reading.grad_z
        self.layers, self.layer_shares = reading.layers, reading.layer_shares
        return True

    def finding(self, reading: Reading) -> Finding | None:
        if self.step is None:
            return None
        return Finding(
            kind=AlertKind.BAD_BATCH,
            level=AlertLevel.WARNING,
            step=self.step,
            title=f"Bad batch at step {self.step}",
            message=(
                f"Loss {self.baseline:.3g} → {self.loss:.3g} and gradient norm ×{self.grad_ratio:.3g} in one step, "
                f"with no build-up before it."
            ),
            cause=Cause.BAD_BATCH,
            layers=self.layers,
            layer_shares=self.layer_shares,
            evidence={
                "loss": self.loss,
                "loss_baseline": self.baseline,
                "grad_norm_ratio": self.grad_ratio,
                "grad_norm_deviations": self.grad_z,
                "gradient_growth_per_step": self.last_growth,
                "lambda_grad_ratio": self.last_gradient_stability,
            },
            advice=advice_after_spike(Cause.BAD_BATCH, reading),
        )

    def event(self) -> Event:
        return Event(
            step=0 if self.step is None else self.step,
            kind=EventKind.BAD_BATCH,
            detail={"loss": self.loss, "baseline": self.baseline, "grad_norm_ratio": self.grad_ratio},
        )
