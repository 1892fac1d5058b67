"""A loss that rises and does not fall again.

Rule: the median of the last 40 losses is more than three times the level at which the run began (critical), or the loss
stayed above its level before a spike for 150 steps and is 1.5 times the run's first losses (warning). The finding holds
until the median is under 1.5 times that level again.

Trade-off: a loss that rises slowly is reported only when it is far above the start of the run; a run that begins at a
high loss may double its best loss unreported. Spikes are left to the spike detector, because a median of 40 losses does
not see them.

>>> detector = DivergenceDetector()
>>> for step in range(160):
...     reading = Reading(step=step, loss=1.0 if step < 100 else 9.0)
...     detector.update(reading, Context())
>>> detector.finding(reading, Context()).title
'Loss diverged by step 119'
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from server.detectors.advice import advice_after_spike
from server.detectors.context import Context
from server.detectors.robust import RecentValues, median
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Cause, Finding

WINDOW: Final = 40
"""Number of losses in the median."""
WORSE: Final = 3.0
"""Ratio of the median to the first losses from which the run diverges."""
BETTER: Final = 1.5
"""Ratio below which the run no longer diverges (hysteresis)."""


class DivergenceDetector(msgspec.Struct):
    """Detector of losses that rise and stay."""

    losses: RecentValues = msgspec.field(default_factory=lambda: RecentValues(WINDOW))
    first: list[float] = []
    """First three losses of the attempt."""
    step: int | None = None
    """Step since which the run diverges."""
    level: float = 0.0
    """Median of the last losses."""
    shifted: bool = False
    """Unused field of snapshot version 1."""

    def update(self, reading: Reading, context: Context) -> None:
        """Add one reading."""
        loss = reading.loss
        if loss is None or not math.isfinite(loss):
            return
        if len(self.first) < 3:
            self.first = [*self.first, loss]
        self.losses.push(loss)
        start = max(map(abs, self.first))
        if len(self.losses.values) < WINDOW or start <= 0:
            return
        if self.step is None and max(self.losses.values) <= BETTER * start:
            return  # the median is not above it either, and needs no sort
        self.level = median(self.losses.values)
        if self.step is None:
            if self.level > WORSE * start or (context.is_level_new and self.level > BETTER * start):
                self.step = reading.step
        elif self.level < BETTER * start:
            self.step = None

    def finding(self, reading: Reading, context: Context) -> Finding | None:
        """Return the finding while the run diverges."""
        del context
        if self.step is None:
            return None
        start = max(abs(value) for value in self.first)
        return Finding(
            kind=AlertKind.DIVERGENCE,
            level=AlertLevel.CRITICAL if self.level > WORSE * start else AlertLevel.WARNING,
            step=self.step,
            title=f"Loss diverged by step {self.step}",
            message=(
                f"The loss stays at {self.level:.3g}, {self.level / start:.3g} times its value at the start "
                f"({start:.3g})."
            ),
            cause=Cause.DIVERGENCE,
            layers=reading.layers,
            layer_shares=reading.layer_shares,
            evidence={"loss": self.level, "loss_start": start, "update_ratio": reading.update_ratio},
            advice=advice_after_spike(Cause.DIVERGENCE, reading),
        )
