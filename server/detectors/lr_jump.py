"""A sudden rise of the learning rate that no schedule explains.

Rule: η grows by more than half in one logged step, by more than twice the last rise (a linear, quadratic or staircase
warm-up rises evenly), after ten steps with η > 0. Back to a rate at which the run has trained before (a warm restart)
it is a watch, and so is less than a threefold rise; tenfold and more is critical. The finding holds for 50 steps.

>>> detector = LearningRateJumpDetector()
>>> [detector.update(step, 1e-3 * min(step, 100)) for step in range(200)].count(True)
0
>>> detector.update(200, 1.0)
True
"""

from __future__ import annotations

from typing import Final

import msgspec

from server.detectors.advice import advice_before_spike
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Cause, Event, EventKind, Finding

JUMP: Final = 1.5
LEAST: Final = 10
HOLD: Final = 50


class LearningRateJumpDetector(msgspec.Struct):
    seen: int = 0
    last: float | None = None
    last_rise: float = 0.0
    highest: float = 0.0
    step: int | None = None
    """Of the jump whose finding holds."""
    before: float = 0.0
    after: float = 0.0
    before_highest: float = 0.0

    def update(self, step: int, lr: float | None) -> bool:
        """True at the step of a jump."""
        if self.step is not None and step - self.step > HOLD:
            self.step = None
        if lr is None or lr <= 0:
            return False
        last, self.last = self.last, lr
        self.seen += 1
        highest, self.highest = self.highest, max(self.highest, lr)
        if last is None or lr <= last:
            return False
        rise, last_rise = lr - last, self.last_rise
        self.last_rise = rise
        if self.seen <= LEAST or lr < JUMP * last or (last_rise > 0 and rise <= 2.0 * last_rise):
            return False
        self.step, self.before, self.after, self.before_highest = step, last, lr, highest
        return True

    def finding(self, reading: Reading) -> Finding | None:
        if self.step is None:
            return None
        factor = self.after / self.before
        known = self.after <= 1.05 * self.before_highest
        level = AlertLevel.WARNING
        if known or factor < 3:
            level = AlertLevel.WATCH
        elif factor >= 10:
            level = AlertLevel.CRITICAL
        return Finding(
            kind=AlertKind.LR_JUMP,
            level=level,
            step=self.step,
            title=f"Learning rate ×{factor:.3g} at step {self.step}",
            message=(
                f"The learning rate went from {self.before:.3g} to {self.after:.3g} in one step; "
                f"the limit 2/η fell to {2 / self.after:.3g}."
            ),
            cause=Cause.LEARNING_RATE,
            evidence={
                "learning_rate_before": self.before,
                "learning_rate_after": self.after,
                "stability_ratio": reading.stability,
            },
            advice=advice_before_spike(Cause.LEARNING_RATE, reading),
        )

    def event(self) -> Event:
        return Event(
            step=0 if self.step is None else self.step,
            kind=EventKind.LR_JUMP,
            detail={"before": self.before, "after": self.after},
        )
