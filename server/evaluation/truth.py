"""The truth about a recording: its spikes in steps, the steps at which an alarm would be false, and the causes. Pure.

Rules:

* An alarm for an event is early in the 100 steps before its onset. If a fault was injected into the run, only from that
  step on.
* An alarm is false at every other step, except from an onset to 20 steps after the end of its event, and around minor
  events (not in controls). The first ten steps of a run are left out.
* The cause of an event is known where the run was built to show one: for an injected fault only at the events that
  follow it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from server.evaluation.alarms import SKIP
from server.evaluation.labels import LabelledEvent, label
from server.evaluation.recording import CONTROL, Recording
from server.models import Cause

EARLY: Final = 100
"""Number of steps before an onset in which an alarm is early."""
AFTER: Final = 20
"""Number of steps after an event in which an alarm is neither early nor false."""
INTRINSIC: Final = ("", "adam-preconditioner", "norm-free", "hard-sample", "warmup", "divergence", "underflow")
"""Causes that arise in training by themselves; "" if unknown."""
CAUSES: Final[Mapping[str, tuple[Cause, ...]]] = {
    "adam-preconditioner": (Cause.STALE_SECOND_MOMENT,),
    "underflow": (Cause.VANISHED_GRADIENTS,),
    "warmup": (Cause.LEARNING_RATE,),
    "divergence": (Cause.LEARNING_RATE, Cause.DIVERGENCE),
    "lr-jump": (Cause.LEARNING_RATE,),
    "data": (Cause.BAD_BATCH,),
    "heavy-tail": (Cause.BAD_BATCH,),
    "state-loss": (Cause.STATE_LOSS,),
    "nonfinite": (Cause.NUMERICAL, Cause.BAD_BATCH),
}
"""Causes that an alert may name, by the cause of a recording. Causes that are not here are not known well enough."""


@dataclass(frozen=True, kw_only=True)
class TrueEvent:
    """A labelled event in steps."""

    first: int
    """First step at which an alarm for it is early."""
    onset: int
    peak: int
    end: int
    rise: float | None
    """Rise of the loss in units of its level before; None if the loss is not finite or its level not positive."""
    causes: tuple[Cause, ...]
    """Causes that an alert may name; empty if the cause is not known."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Labels and causes of one recording."""

    name: str
    cause: str
    family: str
    batches: str
    is_swell: bool
    """Whether its labels are uncertain; see `Recording`."""
    steps: tuple[int, ...]
    """Steps of the samples."""
    events: tuple[TrueEvent, ...]
    """All labelled events, in order."""
    clean: frozenset[int]
    """Steps at which an alarm would be false."""

    @property
    def judged(self) -> tuple[TrueEvent, ...]:
        """Events after the first ten samples; nobody can be early for the others."""
        last = self.steps[min(SKIP, len(self.steps)) - 1] if self.steps else 0
        return tuple(event for event in self.events if event.onset > last)

    @property
    def is_intrinsic(self) -> bool:
        """Whether the events of the run arose by themselves."""
        return self.cause in INTRINSIC

    @property
    def is_control(self) -> bool:
        """Whether the run is a healthy control."""
        return self.cause == CONTROL


def truth_of(recording: Recording) -> Truth:
    """Label a recording."""
    steps = tuple(sample.step for sample in recording.samples)
    labelled, minor = label(recording.losses)
    events = tuple(_in_steps(event, steps, recording) for event in labelled)
    clean = set(steps[SKIP:])
    for event in events:
        clean -= set(range(event.first, event.end + AFTER + 1))
    if recording.cause != CONTROL:
        for one in minor:
            clean -= set(range(steps[one.onset] - EARLY, steps[one.end] + AFTER + 1))
    return Truth(
        name=recording.name,
        cause=recording.cause,
        family=recording.family,
        batches=recording.batches,
        is_swell=recording.is_swell,
        steps=steps,
        events=events,
        clean=frozenset(clean),
    )


def _in_steps(event: LabelledEvent, steps: tuple[int, ...], recording: Recording) -> TrueEvent:
    onset, trigger = steps[event.onset], steps[event.trigger]
    first = onset - EARLY
    is_blamed = recording.cause in INTRINSIC
    if not is_blamed:
        faults = [step for step in recording.fault_steps if onset - EARLY <= step <= trigger]
        first = max(faults, default=onset)
        is_blamed = bool(faults) or not recording.fault_steps
    is_known = event.finite and event.base > 0 and math.isfinite(event.height)
    return TrueEvent(
        first=max(first, steps[0]),
        onset=onset,
        peak=steps[event.peak],
        end=steps[event.end],
        rise=event.height / event.base if is_known else None,
        causes=CAUSES.get(recording.cause, ()) if is_blamed else (),
    )
