"""Advice for a cause: what to try, in the order of fit. Remedies conflict, so the list follows the evidence.

Where curvature along stale directions is the cause, ε goes up; where gradients sank below ε, it goes down. β2 goes down
where v forgets too slowly, but not in an optimizer without β2. The reasons are in docs/explanation/science.md.

>>> advice_before_spike(Cause.LEARNING_RATE, Reading(step=1))[0]
'Save a checkpoint now'
"""

from __future__ import annotations

from typing import Final

from server.detectors.signals import Reading
from server.models import Cause

CHECKPOINT: Final = "Save a checkpoint now"


def advice_before_spike(cause: Cause, reading: Reading) -> tuple[str, ...]:
    """Return the advice for a spike that is still to come, beginning with a checkpoint."""
    return (CHECKPOINT, *_remedies(cause, reading))


def advice_after_spike(cause: Cause, reading: Reading) -> tuple[str, ...]:
    """Return the advice for a spike that is in progress or over."""
    if cause is Cause.BAD_BATCH:
        return _remedies(cause, reading)
    return (
        "If the loss does not come back, resume from a checkpoint about 100 steps earlier",
        *_remedies(cause, reading),
    )


def _remedies(cause: Cause, reading: Reading) -> tuple[str, ...]:
    if cause is Cause.STALE_SECOND_MOMENT:
        return (*_shorter_memory(reading), *_larger_eps(reading), _halve_lr(reading), _reset_second_moment(reading))
    if cause is Cause.VANISHED_GRADIENTS:
        return (*_smaller_eps(reading), _halve_lr(reading), "Clip the update: η_t = η / max(1, RMS_t)")
    if cause is Cause.LEARNING_RATE:
        return (
            "Return to the learning rate before the jump, or warm up to the new one over a few hundred steps",
            "Clip the update: η_t = η / max(1, RMS_t)",
        )
    if cause is Cause.BAD_BATCH:
        return (
            "Inspect this batch: does the jump repeat at the same data position, or in other runs?",
            "Skip the batch, and clip the gradient norm so that a single batch cannot do this again",
        )
    if cause is Cause.STATE_LOSS:
        return (
            "Resume again and load the optimizer's state dict along with the weights",
            "If the state dict is lost, warm up the learning rate again over about 1/(1−β2) steps",
        )
    if cause is Cause.NUMERICAL:
        return (
            "Find the first non-finite layer with torch.autograd.set_detect_anomaly(True) on this batch",
            "Compute the loss in float32 or float64 for comparison",
            "With loss scaling, check whether the scale has collapsed",
        )
    if cause is Cause.DIVERGENCE:
        return ("Stop and resume from a checkpoint before the rise", _halve_lr(reading), "Lengthen the warm-up")
    return (_halve_lr(reading), "Clip the gradient norm", "Log the batch's data position to see whether it repeats")


def _shorter_memory(reading: Reading) -> tuple[str, ...]:
    if reading.optimizer is None or reading.optimizer.beta2 is None:
        return ()
    beta2 = reading.optimizer.beta2
    shorter = next((b for b in (0.99, 0.95) if beta2 > b + 0.004), None)
    if shorter is None:
        return ()
    return (
        f"β2 {beta2:g} → {shorter:g}: v forgets in {1 / (1 - shorter):,.0f} steps instead of {1 / (1 - beta2):,.0f}",
    )


def _larger_eps(reading: Reading) -> tuple[str, ...]:
    eps = reading.optimizer.eps if reading.optimizer is not None else None
    if eps is None or eps >= 1e-4:
        return ()
    return (f"Raise ε from {eps:g} to {max(1e-4, 10 * eps):g}, because curvature along stale directions is the cause",)


def _smaller_eps(reading: Reading) -> tuple[str, ...]:
    eps = reading.optimizer.eps if reading.optimizer is not None else None
    if eps is None or eps <= 1e-15:
        return ()
    return (f"Lower ε from {eps:g} to {max(1e-15, eps * 1e-4):.0g}, because gradients have fallen below it",)


def _halve_lr(reading: Reading) -> str:
    if reading.lr is None or not reading.lr > 0:
        return "Halve the learning rate for 200 steps"
    return (
        f"Halve the learning rate for 200 steps: {reading.lr:.3g} → {reading.lr / 2:.3g}, which doubles the limit 2/η"
    )


def _reset_second_moment(reading: Reading) -> str:
    if reading.layers:
        return f"Reset v (or m and v) of {', '.join(reading.layers[:2])}"
    return "Reset v (or m and v) of the leading layers"
