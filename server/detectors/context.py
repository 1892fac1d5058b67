"""The context of a step: everything that detectors learn from each other."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from server.detectors.causes import CauseTracker
from server.detectors.signals import Reading
from server.detectors.track_record import LOUD, TrackRecord
from server.models import AlertLevel, Outlier, StageReason


class Context(msgspec.Struct, kw_only=True, eq=False):
    """Conclusions that the detectors of a suite share at one step.

    The suite creates one for each step; detectors read it and add to it in their order. No detector reads another one.
    """

    causes: CauseTracker = msgspec.field(default_factory=CauseTracker)
    """Recent events that could explain a spike."""
    record: TrackRecord = msgspec.field(default_factory=TrackRecord)
    """Success of the run's earlier predictions."""
    sensitivity: float = 1.0
    """Sensitivity of the predictions (`sensitivity`): above 1 for more warnings, below 1 for fewer."""
    missing: StageReason | None = None
    """Evidence that the detectors lack to judge whether the run is stable; None if they lack nothing."""
    scalars: Mapping[str, float] = {}
    """Scalars of the sample, the ones without a meaning included."""
    outlier: Outlier | None = None
    """Outlier of the loss at this step, or mark, once the outlier detector was updated."""
    is_first: bool = False
    """Whether this is the first reading of the attempt."""
    is_spiking: bool = False
    """Whether a spike of the loss is in progress: before this step, and at it once the spike detector was updated."""
    is_jumping: bool = False
    """Whether a jump of the loss is in progress: before this step, and at it once the jump detector was updated."""
    jump_level: AlertLevel | None = None
    """Level of the jump in progress by its height, which settles predictions."""
    spike_peak_step: int = 0
    """Step of the largest loss of the last spike."""
    spike_onset: int = 0
    """First step of the last spike."""
    spike_trigger: int = 0
    """Step at which the last spike was recognised."""
    spike_baseline: float = 0.0
    """Level of the loss before the last spike."""
    is_level_raised: bool = False
    """Whether the loss rose and stays up."""
    is_level_new: bool = False
    """Whether a spike ended at this step because the loss did not come back."""
    loss_noise: str = ""
    """Shape of the loss's noise in words if it looks like spikes; "" otherwise."""
    is_loss_nonfinite: bool = False
    """Whether the loss became NaN or infinite at one of the last steps."""
    is_last_loss_nonfinite: bool = False
    """Whether the latest loss is NaN or infinite."""
    prediction_level: str = ""
    """Level of the predicted spike, "" for none: before this step, and at it once the predictor was updated."""
    prediction_due: int | None = None
    """Last step of the range in which the predicted spike is expected."""

    @property
    def is_spike_predicted(self) -> bool:
        """Whether a spike is predicted at level warning or above."""
        return self.prediction_level in LOUD

    @property
    def outcome_level(self) -> AlertLevel | None:
        """Level of the event that settles a prediction: a jump of the loss, or a loss that is no longer finite."""
        return AlertLevel.CRITICAL if self.is_loss_nonfinite else self.jump_level

    def explains_jump(self, reading: Reading) -> bool:
        """Whether something other than the batch explains a jump of loss and gradient at this step.

        Explanations are a predicted spike, a jump in progress, a recent jump of the learning rate, and a lost
        optimizer state at this or the previous step.
        """
        return (
            self.is_spike_predicted
            or self.is_jumping
            or self.causes.is_lr_jump_recent(reading)
            or reading.state_reset
            or self.causes.reset_step == reading.step - 1
        )
