"""Causes of spikes: from evidence to the mechanism behind a spike.

The causes are described in docs/explanation/science.md, "Causes and remedies".

Owns the order in which the causes are checked. A cause is reported only with evidence for it, otherwise it is unknown.
"""

from __future__ import annotations

from typing import Final

import msgspec

from server.detectors.signals import DECOUPLED, Reading
from server.models import Cause

MEMORY: Final = 50
"""Number of records for which a changed learning rate, a lost state or non-finite gradients explain a later spike."""
BAD_BATCH_MEMORY: Final = 3
"""Number of records for which a bad batch explains a later spike."""
PREDICTION_MEMORY: Final = 20
"""Number of records for which a predicted spike explains a later one."""


class CauseOfSpike(msgspec.Struct, frozen=True, kw_only=True):
    """A cause with the sentence that explains it and the numbers behind it."""

    cause: Cause
    sentence: str
    evidence: dict[str, float | int | str | None] = {}


class CauseTracker(msgspec.Struct):
    """Memory of recent events that could explain a spike.

    >>> tracker = CauseTracker()
    >>> tracker.note_lr_jump(step=100, before=0.001, after=0.1)
    >>> tracker.judge(Reading(step=104), onset=103).cause.value
    'learning-rate'
    >>> tracker.judge(Reading(step=400), onset=400).cause.value
    'unknown'
    """

    lr_jump_step: int | None = None
    lr_before: float = 0.0
    lr_after: float = 0.0
    bad_batch_step: int | None = None
    bad_batch_ratio: float = 1.0
    """Ratio of its gradient norm to the usual one."""
    reset_step: int | None = None
    """Last step at which the optimizer's state was lost."""
    nonfinite_step: int | None = None
    """Last step with non-finite gradients."""
    warned_step: int | None = None
    """Last step before which a spike was predicted at level warning or above."""
    min_decoupling: float = msgspec.field(default=1.0, name="least_decoupling")
    """Smallest decoupling of the latest build-up."""

    def update(self, reading: Reading, is_spike_predicted: bool) -> None:
        """Add one reading. The second argument says whether a spike had been predicted before it."""
        if reading.state_reset:
            self.reset_step = reading.step
        if reading.nonfinite:
            self.nonfinite_step = reading.step
        if is_spike_predicted:
            self.warned_step = reading.step
        if reading.min_decoupling is not None:
            self.min_decoupling = reading.min_decoupling

    def note_lr_jump(self, step: int, before: float, after: float) -> None:
        """Remember a jump of the learning rate."""
        self.lr_jump_step, self.lr_before, self.lr_after = step, before, after

    def note_bad_batch(self, step: int, grad_ratio: float) -> None:
        """Remember a bad batch."""
        self.bad_batch_step, self.bad_batch_ratio = step, grad_ratio

    def is_lr_jump_recent(self, reading: Reading) -> bool:
        """Whether the learning rate jumped within the last 50 records."""
        return _is_recent(self.lr_jump_step, reading.step, MEMORY * reading.interval)

    def judge(self, reading: Reading, onset: int) -> CauseOfSpike:
        """Return the cause of a spike that began at step `onset`."""
        memory = MEMORY * reading.interval
        if _is_recent(self.reset_step, onset, memory):
            return CauseOfSpike(
                cause=Cause.STATE_LOSS,
                sentence=f"The optimizer's second moment was empty at step {self.reset_step}: its state was lost.",
                evidence={"state_reset_step": self.reset_step},
            )
        if _is_recent(self.lr_jump_step, onset, memory):
            return CauseOfSpike(
                cause=Cause.LEARNING_RATE,
                sentence=(
                    f"The learning rate went from {self.lr_before:.3g} to {self.lr_after:.3g} "
                    f"at step {self.lr_jump_step}."
                ),
                evidence={
                    "learning_rate_before": self.lr_before,
                    "learning_rate_after": self.lr_after,
                    "lr_jump_step": self.lr_jump_step,
                },
            )
        if _is_recent(self.nonfinite_step, onset, memory):
            return CauseOfSpike(
                cause=Cause.NUMERICAL,
                sentence=f"Gradients were not finite at step {self.nonfinite_step}.",
                evidence={"nonfinite_step": self.nonfinite_step},
            )
        if _is_recent(self.bad_batch_step, onset, BAD_BATCH_MEMORY * reading.interval):
            return CauseOfSpike(
                cause=Cause.BAD_BATCH,
                sentence="Loss and gradient jumped together in one step, without any build-up, and returned at once.",
                evidence={"grad_norm_ratio": self.bad_batch_ratio},
            )
        if _is_recent(self.warned_step, onset, PREDICTION_MEMORY * reading.interval):
            return CauseOfSpike(
                cause=Cause.STALE_SECOND_MOMENT,
                sentence="The second moment v was too stale to follow the growing gradient.",
                evidence={"stability_ratio": reading.stability, "decoupling_least": self.min_decoupling},
            )
        return CauseOfSpike(cause=Cause.UNKNOWN, sentence="No build-up was seen before it.")

    def judge_build_up(self, reading: Reading) -> Cause:
        """Return the mechanism behind a spike that is predicted and has not come yet."""
        if _is_recent(self.reset_step, reading.step, MEMORY * reading.interval):
            return Cause.STATE_LOSS
        if self.is_lr_jump_recent(reading):
            return Cause.LEARNING_RATE
        if reading.eps_fraction is not None and reading.eps_fraction > 0.5 and not is_stale(reading):
            return Cause.VANISHED_GRADIENTS
        if is_stale(reading) or (reading.stability_peak is not None and reading.stability_peak > 1.0):
            return Cause.STALE_SECOND_MOMENT
        return Cause.UNKNOWN


def is_stale(reading: Reading) -> bool:
    """Whether v was decoupled from the gradient at one of the last 10 steps."""
    return reading.min_decoupling is not None and reading.min_decoupling < DECOUPLED


def _is_recent(step: int | None, now: int, memory: int) -> bool:
    return step is not None and abs(now - step) <= memory
