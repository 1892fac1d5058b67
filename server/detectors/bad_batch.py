"""A batch that does not belong to the data: loss and gradient jump together in one step, and return at once.

Rule: in one step the loss rises above its noise (by 8 robust standard deviations and 20 % of the median of the
last 40 losses) and log‖g‖ above its own (z > 4, and twice its mean). Nothing may explain the jump: ‖g‖ was not
climbing, λ_grad was under the limit, no spike was predicted or in progress, the learning rate and the optimizer's state
were untouched. One of the next two losses is back within a quarter of the jump; only then the batch is named. All of
these records are of consecutive steps: in a log of every 100 steps it cannot be known whether one batch did it. The
finding holds for 20 records at level watch, because a single outlier does no harm. A rise that lasts is a spike.

A spike of Adam's mechanism raises the loss over several steps and follows a climb of the gradient; the loss after a bad
batch is often back at the next batch. Where the closure gives λ_step, a step that raises the loss of its own batch
(λ_step over the limit) is evidence for Adam's mechanism and against bad data (99 % against 0 of 7 on recorded runs).

Trade-off: a bad batch during a build-up is not named, and neither is one whose damage lasts. Both are spikes.

>>> detector = BadBatchDetector()
>>> for step in range(1, 41):
...     detector.update(Reading(step=step, loss=1.0), Context())
>>> detector.update(Reading(step=41, loss=5.0, grad_ratio=8.0, grad_z=9.0), Context())
>>> detector.update(Reading(step=42, loss=1.1), Context()).step
41

Reference: Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, section 5.1) skip the batches around a spike.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from server.detectors.advice import advice_after_spike
from server.detectors.context import Context
from server.detectors.robust import RecentValues, median_and_spread
from server.detectors.signals import MARKED, Reading
from server.models import AlertKind, AlertLevel, Cause, Event, EventKind, Finding

MIN_LOSSES: Final = 20
"""Number of losses before which nothing is judged."""
HOLD: Final = 20
"""Number of records for which the finding holds."""
RETURN: Final = 2
"""Number of steps within which the loss must be back."""
BACK: Final = 0.25
"""Share of the jump under which the loss is back."""
CLIMBED: Final = 0.03
"""Slope of log‖g‖ per step from which the gradient builds up."""


class BadBatchDetector(msgspec.Struct):
    """Detector of single batches that do not belong to the data."""

    losses: RecentValues = msgspec.field(default_factory=lambda: RecentValues(40))
    last_growth: float = 0.0
    """Slope of log‖g‖ before the latest step."""
    last_gradient_stability: float | None = None
    """λ_grad over the limit before the latest step."""
    step: int | None = None
    """Step of the bad batch whose finding holds."""
    suspect: int | None = None
    """Step of a jump after which the loss has not yet returned."""
    last_step: int | None = None
    """Step of the last loss."""
    baseline: float = 0.0
    """Median of the losses before the bad batch."""
    loss: float = 0.0
    grad_ratio: float = 1.0
    grad_z: float = 0.0
    layers: tuple[str, ...] = ()
    layer_shares: tuple[float, ...] = ()

    def update(self, reading: Reading, context: Context) -> Event | None:
        """Add one reading and return the event of a bad batch once the loss is back after it."""
        if self.step is not None and reading.step - self.step > HOLD * reading.interval:
            self.step = None
        growth, self.last_growth = self.last_growth, reading.growth
        curvature, self.last_gradient_stability = self.last_gradient_stability, reading.gradient_stability
        loss = reading.loss
        if loss is None or not math.isfinite(loss):
            return None
        last_step, self.last_step = self.last_step, reading.step
        event = self._confirm(reading.step, loss, context)
        if event is not None:
            self.losses.push(loss)
            return event
        if reading.grad_ratio <= MARKED or reading.grad_z <= 4:
            self.losses.push(loss)
            return None
        values = list(self.losses.values)
        self.losses.push(loss)
        is_taken = self.step is not None or self.suspect is not None
        is_sparse = last_step is not None and reading.step - last_step > 1
        if len(values) < MIN_LOSSES or is_taken or is_sparse or context.explains_jump(reading):
            return None
        built_up = growth > CLIMBED or (curvature is not None and curvature > 1.0)
        raised_own_loss = reading.step_stability is not None and reading.step_stability > 1.0
        if built_up or raised_own_loss:
            return None
        baseline, spread = median_and_spread(values)
        steady = values[-1] <= baseline + 4 * max(spread, 0.02 * abs(baseline))
        rise = loss - baseline
        jumped = rise > max(8 * spread, 0.2 * abs(baseline)) and rise > 1e-3 * max(values)
        if not (jumped and steady):
            return None
        self.suspect, self.baseline, self.loss = reading.step, baseline, loss
        self.grad_ratio, self.grad_z = reading.grad_ratio, reading.grad_z
        self.layers, self.layer_shares = reading.layers, reading.layer_shares
        return None

    def _confirm(self, step: int, loss: float, context: Context) -> Event | None:
        """Return the event of the suspected bad batch if this loss is back; forget the suspicion if it is too late."""
        if self.suspect is None:
            return None
        if step - self.suspect > RETURN:
            self.suspect = None
            return None
        if loss > self.baseline + BACK * (self.loss - self.baseline):
            return None
        self.step, self.suspect = self.suspect, None
        context.causes.note_bad_batch(self.step, self.grad_ratio)
        return Event(
            step=self.step,
            kind=EventKind.BAD_BATCH,
            detail={"loss": self.loss, "baseline": self.baseline, "grad_norm_ratio": self.grad_ratio},
        )

    def finding(self, reading: Reading, context: Context) -> Finding | None:
        """Return the finding for 20 records after a bad batch."""
        del context
        if self.step is None:
            return None
        return Finding(
            kind=AlertKind.BAD_BATCH,
            level=AlertLevel.WATCH,
            step=self.step,
            title=f"Bad batch at step {self.step}",
            message=(
                f"In one step the loss rose from {self.baseline:.3g} to {self.loss:.3g} and the gradient norm to "
                f"{self.grad_ratio:.3g} times its usual size, without any build-up, and the loss returned at once."
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
