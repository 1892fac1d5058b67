"""Gradients that fell below ε, the first sign of a later jump of the loss.

Rule: the share of coordinates with √v̂ < ε has once been below 10 % and is now above 50 % at 20 measurements in a row.
It ends when the share is below 10 % again. It is a state, not an alarm, so its level is watch.

Trade-off: layers that never had a gradient (unused embeddings) start high, so a run that never was below 10 % is not
reported at all.

>>> detector = EpsFloorDetector()
>>> shares = [0.05] + 20 * [0.8]
>>> for step, share in enumerate(shares):
...     reading = Reading(step=step, eps_fraction=share)
...     detector.update(reading, Context())
>>> detector.finding(reading, Context()).title
'Gradients have fallen below ε'

Reference: Molybog et al. 2023, "A Theory on Adam Instability in Large-Scale Machine Learning" (arXiv 2304.09871).
"""

from __future__ import annotations

from typing import Final

import msgspec

from server.detectors.advice import advice_before_spike
from server.detectors.context import Context
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Cause, Finding

LOW, HIGH = 0.1, 0.5
HOLD: Final = 20
"""Number of consecutive measurements above `HIGH` that make a finding."""


class EpsFloorDetector(msgspec.Struct):
    """Detector of second moments that are smaller than ε."""

    was_low: bool = False
    """Whether the share has been below 10 % in this attempt."""
    high_count: int = 0
    """Number of the latest consecutive measurements above 50 %."""
    step: int | None = None
    """Step since which the finding holds."""

    def update(self, reading: Reading, context: Context) -> None:
        """Add one reading."""
        del context
        share = reading.eps_fraction
        if share is None:
            return
        self.was_low = self.was_low or share < LOW
        self.high_count = self.high_count + 1 if share > HIGH else 0
        if self.was_low and self.high_count >= HOLD and self.step is None:
            self.step = reading.step
        elif share < LOW:
            self.step = None

    def finding(self, reading: Reading, context: Context) -> Finding | None:
        """Return the finding while most second moments are below ε."""
        del context
        if self.step is None:
            return None
        share = reading.eps_fraction
        return Finding(
            kind=AlertKind.EPS_FLOOR,
            level=AlertLevel.WATCH,
            step=self.step,
            title="Gradients have fallen below ε",
            message=(
                "√v̂ is below ε for more than half of the coordinates, so ε and not the gradient determines the size of "
                "their steps."
            ),
            cause=Cause.VANISHED_GRADIENTS,
            evidence={"eps_fraction": share, "gradient_growth_per_step": reading.growth},
            advice=advice_before_spike(Cause.VANISHED_GRADIENTS, reading),
        )
