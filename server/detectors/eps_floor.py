"""Gradients that sank under ε: Molybog's first steps towards a jump.

Rule: the share of coordinates with √v̂ < ε was below a tenth and is now above half, for 20 measurements. It is a
state, not an alarm: level watch. Layers that never had a gradient (unused embeddings) start high and do not count.
"""

from __future__ import annotations

from typing import Final

import msgspec

from server.detectors.advice import advice_before_spike
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Cause, Finding

LOW, HIGH = 0.1, 0.5
HOLD: Final = 20


class EpsFloorDetector(msgspec.Struct):
    was_low: bool = False
    high_count: int = 0
    step: int | None = None

    def update(self, reading: Reading) -> None:
        share = reading.eps_fraction
        if share is None:
            return
        self.was_low = self.was_low or share < LOW
        self.high_count = self.high_count + 1 if share > HIGH else 0
        if self.was_low and self.high_count >= HOLD and self.step is None:
            self.step = reading.step
        elif share < LOW:
            self.step = None

    def finding(self, reading: Reading) -> Finding | None:
        if self.step is None:
            return None
        share = reading.eps_fraction
        return Finding(
            kind=AlertKind.EPS_FLOOR,
            level=AlertLevel.WATCH,
            step=self.step,
            title="Gradients have sunk under ε",
            message=(
                "√v̂ is below ε for more than half of the coordinates: ε, not the gradient, sets the size of their step."
            ),
            cause=Cause.VANISHED_GRADIENTS,
            evidence={"eps_fraction": share, "gradient_growth_per_step": reading.growth},
            advice=advice_before_spike(Cause.VANISHED_GRADIENTS, reading),
        )
