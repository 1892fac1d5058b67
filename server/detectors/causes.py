"""Which mechanism made, or is making, a spike: evidence in, cause out (docs/science.md, "Causes to tell apart").

Owns the order of the questions. A cause is named only on evidence for it, otherwise it is unknown.
"""

from __future__ import annotations

from typing import Final

import msgspec

from server.detectors.signals import DECOUPLED, Reading
from server.models import Cause

MEMORY: Final = 50
"""Steps for which a changed learning rate, a lost state or a bad batch explains what follows."""


class CauseOfSpike(msgspec.Struct, frozen=True, kw_only=True):
    """A cause, the sentence that says why, and its numbers."""

    cause: Cause
    sentence: str
    evidence: dict[str, float | int | str | None] = {}


class CauseTracker(msgspec.Struct):
    """Remembers what happened lately that could explain a spike."""

    lr_jump_step: int | None = None
    lr_before: float = 0.0
    lr_after: float = 0.0
    bad_batch_step: int | None = None
    reset_step: int | None = None
    nonfinite_step: int | None = None
    warned_step: int | None = None
    """Last step at which Adam's mechanism was seen at work."""
    least_decoupling: float = 1.0
    """In the latest build-up."""

    def update(self, reading: Reading, warned: bool) -> None:
        if reading.state_reset:
            self.reset_step = reading.step
        if reading.nonfinite:
            self.nonfinite_step = reading.step
        if warned:
            self.warned_step = reading.step
        if reading.decoupling_least is not None:
            self.least_decoupling = reading.decoupling_least

    def judge(self, reading: Reading, onset: int) -> CauseOfSpike:
        """The cause of a spike with this onset."""
        if _recent(self.reset_step, onset):
            return CauseOfSpike(
                cause=Cause.STATE_LOSS,
                sentence=f"The optimizer's second moment was empty at step {self.reset_step}: its state was lost.",
                evidence={"state_reset_step": self.reset_step},
            )
        if _recent(self.lr_jump_step, onset):
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
        if _recent(self.nonfinite_step, onset):
            return CauseOfSpike(
                cause=Cause.NUMERICAL,
                sentence=f"Gradients were not finite at step {self.nonfinite_step}.",
                evidence={"nonfinite_step": self.nonfinite_step},
            )
        if _recent(self.bad_batch_step, onset, memory=3):
            return CauseOfSpike(
                cause=Cause.BAD_BATCH,
                sentence="Loss and gradient jumped together in one step, without any build-up.",
                evidence={"grad_norm_ratio": reading.grad_ratio},
            )
        if _recent(self.warned_step, onset, memory=20):
            return CauseOfSpike(
                cause=Cause.STALE_SECOND_MOMENT,
                sentence="v had been too stale to follow the growing gradient.",
                evidence={"stability_ratio": reading.stability, "decoupling_least": self.least_decoupling},
            )
        return CauseOfSpike(cause=Cause.UNKNOWN, sentence="No build-up was seen before it.")


def cause_of_build_up(reading: Reading, tracker: CauseTracker) -> Cause:
    """The mechanism behind a spike that has not come yet."""
    if _recent(tracker.reset_step, reading.step):
        return Cause.STATE_LOSS
    if _recent(tracker.lr_jump_step, reading.step):
        return Cause.LEARNING_RATE
    if reading.eps_fraction is not None and reading.eps_fraction > 0.5 and not is_stale(reading):
        return Cause.VANISHED_GRADIENTS
    if is_stale(reading) or (reading.stability_peak is not None and reading.stability_peak > 1.0):
        return Cause.STALE_SECOND_MOMENT
    return Cause.UNKNOWN


def is_stale(reading: Reading) -> bool:
    """v was decaying on its own just now."""
    return reading.decoupling_least is not None and reading.decoupling_least < DECOUPLED


def _recent(step: int | None, now: int, memory: int = MEMORY) -> bool:
    return step is not None and abs(now - step) <= memory
