"""A sudden rise of the learning rate that no schedule explains.

Rule: after ten records with η > 0, η grows by more than half from one record to the next, and by more than twice what
the last rise was per step. A linear, quadratic or staircase warm-up rises evenly and passes, at any pause.
The level is warning; critical from a tenfold rise on; watch below a threefold rise or back to a rate at which the run
has trained before (a warm restart). The finding holds for 50 records.

Trade-off: a jump within the first ten records, or in several small steps, is taken for a warm-up.

>>> detector = LearningRateJumpDetector()
>>> warm_up = [Reading(step=step, lr=1e-3 * min(step, 100)) for step in range(200)]
>>> any(detector.update(reading, Context()) for reading in warm_up)
False
>>> detector.update(Reading(step=200, lr=1.0), Context()).detail
{'before': 0.1, 'after': 1.0}
"""

from __future__ import annotations

from typing import Final

import msgspec

from server.detectors.advice import advice_before_spike
from server.detectors.context import Context
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Cause, Event, EventKind, Finding

JUMP: Final = 1.5
"""Smallest ratio of two consecutive learning rates that counts as a jump."""
WARM_UP_STEPS: Final = 10
"""Number of first records in which nothing counts as a jump."""
HOLD: Final = 50
"""Number of records for which the finding holds."""


class LearningRateJumpDetector(msgspec.Struct):
    """Detector of sudden rises of the learning rate."""

    seen: int = 0
    """Number of positive learning rates so far."""
    last: float | None = None
    last_rise: float = 0.0
    """Difference of the last two learning rates that rose."""
    last_step: int | None = None
    """Step of the last positive learning rate."""
    last_rise_steps: int = 1
    """Number of steps that the last rise took."""
    highest: float = 0.0
    """Largest learning rate so far."""
    step: int | None = None
    """Step of the jump whose finding holds."""
    before: float = 0.0
    after: float = 0.0
    steps: int = 1
    """Number of steps that the jump took at most: the pause between the two records."""
    before_highest: float = 0.0
    """Largest learning rate before the jump."""

    def update(self, reading: Reading, context: Context) -> Event | None:
        """Add one reading and return an event at the step of a jump."""
        step, lr = reading.step, reading.lr
        if self.step is not None and step - self.step > HOLD * reading.interval:
            self.step = None
        if lr is None or lr <= 0:
            return None
        last, self.last = self.last, lr
        steps = 1 if self.last_step is None else step - self.last_step
        self.last_step = step
        self.seen += 1
        highest, self.highest = self.highest, max(self.highest, lr)
        if last is None or lr <= last:
            return None
        rise = lr - last
        usual = self.last_rise * max(steps / self.last_rise_steps, 1.0)
        self.last_rise, self.last_rise_steps = rise, steps
        if self.seen <= WARM_UP_STEPS or lr < JUMP * last or (usual > 0 and rise <= 2.0 * usual):
            return None
        self.steps = steps
        self.step, self.before, self.after, self.before_highest = step, last, lr, highest
        context.causes.note_lr_jump(step, last, lr)
        return Event(step=step, kind=EventKind.LR_JUMP, detail={"before": last, "after": lr})

    def finding(self, reading: Reading, context: Context) -> Finding | None:
        """Return the finding for 50 records after a jump."""
        del context
        if self.step is None:
            return None
        factor = self.after / self.before
        when = "in one step" if self.steps == 1 else f"between steps {self.step - self.steps} and {self.step}"
        is_restart = self.after <= 1.05 * self.before_highest
        level = AlertLevel.WARNING
        if is_restart or factor < 3:
            level = AlertLevel.WATCH
        elif factor >= 10:
            level = AlertLevel.CRITICAL
        return Finding(
            kind=AlertKind.LR_JUMP,
            level=level,
            step=self.step,
            title=f"Learning rate ×{factor:.3g} at step {self.step}",
            message=(
                f"The learning rate went from {self.before:.3g} to {self.after:.3g} {when}; "
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
