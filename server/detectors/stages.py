"""The five stages of an Adam spike (Bai et al.; docs/explanation/science.md), with hysteresis.

Rule: a run is stable, and becomes

* *decoupled* after 20 steps in which v is decoupled from the gradient (Σg²/Σv̂ < 0.1);
* *unstable* when λ_max was above the limit for 5 steps with v decoupled, or when a spike is predicted at level warning
  or above, until λ_max is under 95 % of the limit;
* *spiking* while a spike of the loss is in progress and its peak is less than 3 records old;
* *recovering* until the loss is back and λ_max under the limit, for 200 records at most.

While the latest loss is NaN or infinite, the run is *non-finite*. A loss that rose and stays up keeps it *spiking*.

A run without evidence is *not judged* instead of stable: without a loss, before the 10th one, and where neither the
second moment nor curvature is measured, so that no spike can be predicted.

Trade-off: where curvature is not measured, a predicted spike alone stands for "unstable".

>>> from server.models import StageReason
>>> tracker = StageTracker()
>>> tracker.update(Reading(step=1), Context(is_first=True)).detail
{'stage': 'stable'}
>>> tracker.update(Reading(step=2, decoupled_steps=20), Context()).detail
{'stage': 'decoupled'}
>>> tracker.update(Reading(step=3), Context(missing=StageReason.LOSS_ONLY)).detail
{'stage': 'not-judged'}
"""

from __future__ import annotations

from typing import Final

import msgspec

from server.detectors.causes import is_stale
from server.detectors.context import Context
from server.detectors.signals import Reading
from server.models import Event, EventKind, Stage

DECOUPLED_STEPS: Final = 20
"""Length of a decoupled spell in steps that makes a run decoupled."""
ABOVE_STEPS: Final = 5
"""Number of steps above the limit that make a run unstable."""
BELOW: Final = 0.95
"""Ratio of λ_max to the limit under which a run is no longer unstable (hysteresis)."""
PEAK_STEPS: Final = 3
"""Number of records after its peak from which a spike is recovering."""
RECOVERY_STEPS: Final = 200
"""Longest recovery in records."""
STAGES: Final = {stage.value: stage for stage in Stage}
"""Stages by their value; a lookup here is faster than the call of the enumeration."""


class StageTracker(msgspec.Struct):
    """Detector of the stage that a run is in."""

    stage: str = Stage.NOT_JUDGED.value
    since: int = 0
    """Step at which the stage began; a stable one includes the steps before it that were not judged."""

    def update(self, reading: Reading, context: Context) -> Event | None:
        """Add one reading and return an event when the stage changed, and at the first reading."""
        after = self._next(reading, context)
        if after.value != self.stage:
            if self.stage != Stage.NOT_JUDGED or after is not Stage.STABLE:
                self.since = reading.step
            self.stage = after.value
        elif not context.is_first:
            return None
        return Event(step=reading.step, kind=EventKind.STAGE, detail={"stage": self.stage})

    def finding(self, reading: Reading, context: Context) -> None:
        """Report no finding, because the stage is part of every verdict."""
        del reading, context

    def _next(self, reading: Reading, context: Context) -> Stage:
        now = STAGES[self.stage]
        if context.is_last_loss_nonfinite:
            return Stage.NONFINITE
        if context.is_spiking:
            is_fresh = reading.step - context.spike_peak_step < PEAK_STEPS * reading.loss_interval
            return Stage.SPIKING if is_fresh else Stage.RECOVERING
        if context.is_level_raised:
            return Stage.SPIKING
        ratio = reading.stability
        if now in (Stage.SPIKING, Stage.RECOVERING):
            settled = ratio is None or ratio < 1.0
            if not settled and reading.step - self.since < RECOVERY_STEPS * reading.interval:
                return Stage.RECOVERING
        above = ratio is not None and reading.above_steps >= ABOVE_STEPS and is_stale(reading)
        if context.is_spike_predicted or above:
            return Stage.UNSTABLE
        if now is Stage.UNSTABLE and ratio is not None and ratio > BELOW and is_stale(reading):
            return Stage.UNSTABLE
        if reading.decoupled_steps >= DECOUPLED_STEPS:
            return Stage.DECOUPLED
        return Stage.STABLE if context.missing is None else Stage.NOT_JUDGED
