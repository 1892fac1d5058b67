"""A loss that does not come back.

Rule: the median of the last 40 losses is more than three times the level at which the run began (critical), or the
loss has stayed above its level before a spike for 150 steps and is above the run's first losses (warning). Holds
until the median is back under 1.5 × that level.

>>> detector = DivergenceDetector()
>>> any(detector.update(step, 1.0) for step in range(100))
False
>>> [detector.update(step, 9.0) for step in range(100, 160)][-1]
True
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from server.detectors.advice import advice_after_spike
from server.detectors.robust import Window, median
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Cause, Finding

WINDOW: Final = 40
WORSE: Final = 3.0
BETTER: Final = 1.5


class DivergenceDetector(msgspec.Struct):
    losses: Window = msgspec.field(default_factory=lambda: Window(WINDOW))
    first: list[float] = []
    step: int | None = None
    level: float = 0.0
    shifted: bool = False

    def update(self, step: int, loss: float | None, shifted: bool = False) -> bool:
        """Whether the run diverges. `shifted`: a spike has just ended without the loss coming back."""
        if loss is None or not math.isfinite(loss):
            return self.step is not None
        if len(self.first) < 3:
            self.first = [*self.first, loss]
        self.losses.push(loss)
        start = max(map(abs, self.first))
        if len(self.losses.values) < WINDOW or start <= 0:
            return False
        if self.step is None and max(self.losses.values) <= BETTER * start:
            return False  # nor is their median above it
        self.level = median(self.losses.values)
        if self.step is None:
            if self.level > WORSE * start or (shifted and self.level > BETTER * start):
                self.step = step
        elif self.level < BETTER * start:
            self.step = None
        return self.step is not None

    def finding(self, reading: Reading) -> Finding | None:
        if self.step is None:
            return None
        start = max(abs(value) for value in self.first)
        return Finding(
            kind=AlertKind.DIVERGENCE,
            level=AlertLevel.CRITICAL if self.level > WORSE * start else AlertLevel.WARNING,
            step=self.step,
            title=f"Diverged by step {self.step}",
            message=f"The loss stays at {self.level:.3g}, {self.level / start:.3g} times its start of {start:.3g}.",
            cause=Cause.DIVERGENCE,
            layers=reading.layers,
            layer_shares=reading.layer_shares,
            evidence={"loss": self.level, "loss_start": start, "update_ratio": reading.update_ratio},
            advice=advice_after_spike(Cause.DIVERGENCE, reading),
        )
