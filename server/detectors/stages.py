"""The five stages of an Adam spike (Bai et al.; docs/science.md), with hysteresis.

stable → decoupled: v has heard nothing for 20 steps. → unstable: λ_max above the limit for 5 steps with v lagging, or a
predicted climb. → spiking: the loss spike is under way and has not peaked for 3 steps. → recovering until the loss is
back and λ_max under the limit, 200 steps at most. Where curvature is not measured, the climb alone stands for
"unstable".
"""

from __future__ import annotations

from typing import Final

import msgspec

from server.detectors.causes import is_stale
from server.detectors.signals import Reading
from server.models import Stage

DECOUPLED_STEPS: Final = 20
ABOVE_STEPS: Final = 5
BELOW: Final = 0.95
"""λ_max over the limit under which a run is stable again (hysteresis)."""
PEAK_STEPS: Final = 3
RECOVERY_STEPS: Final = 200


STAGES: Final = {stage.value: stage for stage in Stage}


class StageTracker(msgspec.Struct):
    stage: str = Stage.STABLE.value
    since: int = 0
    """Step at which the stage began."""

    def update(self, reading: Reading, *, spiking: bool, peak_step: int, climbing: bool) -> bool:
        """Whether the stage changed. `climbing`: a spike is predicted at warning or above."""
        after = self._next(reading, spiking, peak_step, climbing)
        if after.value == self.stage:
            return False
        self.stage, self.since = after.value, reading.step
        return True

    def _next(self, reading: Reading, spiking: bool, peak_step: int, climbing: bool) -> Stage:
        now = STAGES[self.stage]
        if spiking:
            return Stage.SPIKING if reading.step - peak_step < PEAK_STEPS else Stage.RECOVERING
        ratio = reading.stability
        if now in (Stage.SPIKING, Stage.RECOVERING):
            settled = ratio is None or ratio < 1.0
            if not settled and reading.step - self.since < RECOVERY_STEPS:
                return Stage.RECOVERING
        above = ratio is not None and reading.above_steps >= ABOVE_STEPS and is_stale(reading)
        if climbing or above:
            return Stage.UNSTABLE
        if now is Stage.UNSTABLE and ratio is not None and ratio > BELOW and is_stale(reading):
            return Stage.UNSTABLE
        if reading.decoupled_steps >= DECOUPLED_STEPS:
            return Stage.DECOUPLED
        return Stage.STABLE
