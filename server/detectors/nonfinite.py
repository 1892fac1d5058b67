"""NaN and infinite values: reported as events, never averaged away.

Rule: the loss or the gradient norm is not finite, or a layer counts non-finite coordinates. The level is critical for
the loss. A finite loss with non-finite gradients is normal now and then under loss scaling, so it is a watch until it
happens three times within 100 records, which is a warning. The finding holds for 20 records after the last occurrence,
and to the end of a run whose loss stays NaN or is no longer logged. A scalar gradient norm counts after a finite one,
or together with a loss or layers that are not finite: a column that is NaN from the start was never measured.

Trade-off: a loss scaler that skips a step every 60 steps stays at watch, although something may be wrong with it.

>>> detector = NonfiniteDetector()
>>> reading = Reading(step=3, loss=float("nan"))
>>> print(detector.update(reading, Context()).kind)
nonfinite
>>> detector.finding(reading, Context()).level.value
'critical'

Reference: loss scaling skips steps with non-finite gradients, Micikevicius et al. 2018 (arXiv 1710.03740), section 3.2.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from server.detectors.advice import advice_after_spike
from server.detectors.context import Context
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Cause, Event, EventKind, Finding

HOLD: Final = 20
"""Number of records with finite values after which the finding ends."""
OFTEN: Final = 3
"""Number of occurrences that make a warning."""
SPAN: Final = 100
"""Number of records within which they must happen."""


class NonfiniteDetector(msgspec.Struct):
    """Detector of losses and gradients that are NaN or infinite."""

    first_step: int = 0
    """Step of the first occurrence of the present finding."""
    last_step: int | None = None
    """Step of the latest occurrence; None when no finding holds."""
    steps: list[int] = []
    """Steps of the latest occurrences."""
    loss: bool = False
    """Whether the loss was not finite."""
    is_loss_last: bool = False
    """Whether the latest loss was not finite."""
    gradients: int = 0
    """Largest number of non-finite gradient coordinates at one step."""
    layers: tuple[str, ...] = ()
    """Names of the first layers with non-finite coordinates."""

    def update(self, reading: Reading, context: Context) -> Event | None:
        """Add one reading and return an event at the first occurrence of a finding."""
        bad_loss = reading.loss is not None and not math.isfinite(reading.loss)
        # A norm that is not finite proves one such coordinate at least.
        gradients = reading.nonfinite or int(reading.is_grad_norm_nonfinite)
        event = None
        if bad_loss or gradients:
            event = self._add(reading, bad_loss, gradients)
        elif self._is_over(reading):
            self.last_step = None
        if reading.loss is not None:
            self.is_loss_last = bad_loss
        context.is_last_loss_nonfinite = self.is_loss_last
        context.is_loss_nonfinite = self.loss and self.last_step is not None
        return event

    def _is_over(self, reading: Reading) -> bool:
        """Return whether values have been finite for long enough. Without a finite loss a lost loss is not over."""
        if self.last_step is None or (self.is_loss_last and reading.loss is None):
            return False
        return reading.step - self.last_step > HOLD * reading.interval

    def _add(self, reading: Reading, bad_loss: bool, gradients: int) -> Event | None:
        event = None
        if self.last_step is None:
            self.first_step, self.loss, self.gradients = reading.step, False, 0
            self.layers = reading.nonfinite_layers
            event = Event(
                step=reading.step, kind=EventKind.NONFINITE, detail={"loss": int(bad_loss), "gradients": gradients}
            )
        self.last_step = reading.step
        self.steps = [*self.steps[-(OFTEN - 1) :], reading.step]
        self.loss = self.loss or bad_loss
        self.gradients = max(self.gradients, gradients)
        return event

    def finding(self, reading: Reading, context: Context) -> Finding | None:
        """Return the finding while an occurrence is at most 20 records old."""
        del context
        if self.last_step is None:
            return None
        often = len(self.steps) >= OFTEN and self.steps[-1] - self.steps[0] <= SPAN * reading.interval
        level = AlertLevel.CRITICAL if self.loss else AlertLevel.WARNING if often else AlertLevel.WATCH
        what = "loss" if self.loss else "gradient"
        where = f" First affected layers: {', '.join(self.layers)}." if self.layers else ""
        return Finding(
            kind=AlertKind.NONFINITE,
            level=level,
            step=self.first_step,
            title=f"NaN or infinite {what} at step {self.first_step}",
            message=f"The {what} became NaN or infinite at step {self.first_step}.{where}",
            cause=Cause.NUMERICAL,
            layers=self.layers,
            evidence={"nonfinite_gradients": self.gradients, "nonfinite_loss": int(self.loss)},
            advice=advice_after_spike(Cause.NUMERICAL, reading),
        )
