"""Alarms: what the detectors report on a recording at level warning or above."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from server.detectors.detector_suite import DetectorSuite
from server.evaluation.recording import Recording
from server.models import AlertKind, AlertLevel, PredictedStep

REPEAT: Final = 100
"""Number of steps after which a prediction that still holds counts as another alarm."""
REARM: Final = 20
"""Number of steps without a prediction after which the next one is a new alarm."""
SKIP: Final = 10
"""Number of first samples of a run that are left out."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A spike predicted at level warning or above, with its forecast."""

    step: int
    predicted: PredictedStep | None


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """Reports of the detectors on one recording."""

    alarms: tuple[Alarm, ...]
    kinds: tuple[str, ...]
    """Sorted kinds of all findings at level warning or above."""
    bad_batches: tuple[int, ...]
    """Steps of the batches that were named bad, at whatever level.

    A bad batch whose loss is back at once does no harm, so that its finding is a watch and no alarm. A loss that stays
    up for several steps is a spike, also where bad data cause it, and is not among these.
    """


def replay(recording: Recording) -> Replayed:
    """Return what the detectors report on a recording."""
    suite = DetectorSuite()
    alarms: list[Alarm] = []
    kinds: set[str] = set()
    bad_batches: set[int] = set()
    last_held: int | None = None
    for position, sample in enumerate(recording.samples):
        verdict = suite.update(sample)
        loud = [finding for finding in verdict.findings if finding.level is not AlertLevel.WATCH]
        kinds |= {finding.kind.value for finding in loud}
        bad_batches |= {finding.step for finding in verdict.findings if finding.kind is AlertKind.BAD_BATCH}
        predicted = next((f for f in loud if f.kind is AlertKind.SPIKE_PREDICTED), None)
        if predicted is None or position < SKIP:
            continue
        is_new = last_held is None or sample.step - last_held > REARM
        if is_new or sample.step - alarms[-1].step >= REPEAT:
            alarms.append(Alarm(step=sample.step, predicted=predicted.predicted_step))
        last_held = sample.step
    return Replayed(alarms=tuple(alarms), kinds=tuple(sorted(kinds)), bad_batches=tuple(sorted(bad_batches)))
