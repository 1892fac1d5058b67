"""NaN and infinities: kept as an event, never averaged away.

Rule: the loss, or the gradient norm, is not finite, or a layer counts non-finite coordinates. A finite loss with
non-finite gradients happens now and then under loss scaling, so it is a watch until it happens three times in 100
steps. The finding holds for 20 steps after the last occurrence.

>>> NonfiniteDetector().update(Occurrence(step=3, loss=True, gradients=0, layers=())).level.value
'critical'
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import msgspec

from server.detectors.advice import advice_after_spike
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Cause, Event, EventKind, Finding, LayerSums, Sample

HOLD: Final = 20
"""Steps after which clean values end the finding."""
OFTEN: Final = 3
SPAN: Final = 100


@dataclass(frozen=True, kw_only=True)
class Occurrence:
    """Non-finite values at one step."""

    step: int
    loss: bool
    gradients: int
    """Coordinates; 1 at least where only the norm is known to be non-finite."""
    layers: tuple[str, ...]

    @classmethod
    def of(cls, sample: Sample, sums: LayerSums) -> Occurrence | None:
        loss = sample.scalars.get("loss")
        norm = sample.scalars.get("grad_norm")
        gradients = sums.nonfinite
        if gradients == 0 and norm is not None and not math.isfinite(norm):
            gradients = 1
        bad_loss = loss is not None and not math.isfinite(loss)
        if not bad_loss and gradients == 0:
            return None
        return cls(step=sample.step, loss=bad_loss, gradients=gradients, layers=sums.guilty)


class NonfiniteDetector(msgspec.Struct):
    first_step: int = 0
    last_step: int | None = None
    steps: list[int] = []
    """Of the latest occurrences."""
    loss: bool = False
    gradients: int = 0
    layers: tuple[str, ...] = ()

    def update(self, occurrence: Occurrence) -> Finding:
        if self.last_step is None:
            self.first_step, self.loss, self.gradients = occurrence.step, False, 0
            self.layers = occurrence.layers
        self.last_step = occurrence.step
        self.steps = [*self.steps[-(OFTEN - 1) :], occurrence.step]
        self.loss = self.loss or occurrence.loss
        self.gradients = max(self.gradients, occurrence.gradients)
        return self._finding(None)

    def finding(self, reading: Reading) -> Finding | None:
        if self.last_step is None:
            return None
        if reading.step - self.last_step > HOLD:
            self.last_step = None
            return None
        return self._finding(reading)

    def _finding(self, reading: Reading | None) -> Finding:
        often = len(self.steps) >= OFTEN and self.steps[-1] - self.steps[0] <= SPAN
        level = AlertLevel.CRITICAL if self.loss else AlertLevel.WARNING if often else AlertLevel.WATCH
        what = "loss" if self.loss else "gradient"
        where = f" First in {', '.join(self.layers)}." if self.layers else ""
        return Finding(
            kind=AlertKind.NONFINITE,
            level=level,
            step=self.first_step,
            title=f"Non-finite {what} at step {self.first_step}",
            message=f"The {what} became NaN or infinite at step {self.first_step}.{where}",
            cause=Cause.NUMERICAL,
            layers=self.layers,
            evidence={"nonfinite_gradients": self.gradients, "nonfinite_loss": int(self.loss)},
            advice=() if reading is None else advice_after_spike(Cause.NUMERICAL, reading),
        )

    def event(self, occurrence: Occurrence) -> Event:
        return Event(
            step=occurrence.step,
            kind=EventKind.NONFINITE,
            detail={"loss": int(occurrence.loss), "gradients": occurrence.gradients},
        )
