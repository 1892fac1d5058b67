"""Alarms: what people are told about a coming spike, at level warning or above, while a recording is replayed.

Owns the replay, which goes through the detectors and the lifecycle of alerts as the server does, one sample after the
other, so that nothing sees the future. An *alarm* is an alert of a predicted spike that is first reported at level
warning or above; it counts again whenever 100 steps have passed and its finding is at that level still. The alarms of a
plain rule, which is either true or not at a step, are counted alike: where it becomes true after 20 steps without, and
every 100 steps while it stays so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from client_sdk.vocabulary import LEVEL_RANK
from server.alerts.telling import Telling
from server.evaluation.recording import Recording
from server.models import Alert, AlertKind, AlertLevel, PredictedStep, Verdict

REPEAT: Final = 100
"""Number of steps after which an alarm that still holds counts as another one."""
REARM: Final = 20
"""Number of steps for which a plain rule must have been false before it may alarm again."""
SKIP: Final = 10
"""Number of first samples of a run that are left out."""
Evidence = Mapping[str, float | int | str | None]


@dataclass(frozen=True, kw_only=True)
class Height:
    """The rise that is expected of the loss, with its interval, in units of the loss's level."""

    low: float
    best: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A spike predicted at level warning or above, with its forecast as it was told at that step."""

    step: int
    predicted: PredictedStep | None = None
    height: Height | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """An alert that was opened, changed or closed, as it was reported."""

    step: int
    alert: Alert


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """Everything that people are told while a recording is replayed."""

    alarms: tuple[Alarm, ...]
    reports: tuple[Report, ...] = ()
    """Every report of an alert, in the order in which they are made."""
    kinds: tuple[str, ...] = ()
    """Sorted kinds of the alerts at level warning or above."""
    bad_batches: tuple[int, ...] = ()
    """Steps of the batches that were named bad, at whatever level.

    A bad batch whose loss is back at once does no harm, so that its finding is a watch and no alarm. A loss that stays
    up for several steps is a spike, also where bad data cause it, and is not among these.
    """


def replay(recording: Recording) -> Replayed:
    """Return what people are told about a recording."""
    telling = Telling(recording.name)
    listener = _Listener()
    bad_batches: set[int] = set()
    for position, sample in enumerate(recording.samples):
        reports = telling.update(sample)
        verdict = telling.verdict
        assert verdict is not None
        bad_batches |= {finding.step for finding in verdict.findings if finding.kind is AlertKind.BAD_BATCH}
        listener.hear(sample.step, reports, verdict, is_judged=position >= SKIP)
    return Replayed(
        alarms=tuple(listener.alarms),
        reports=tuple(listener.reports),
        kinds=tuple(sorted({r.alert.kind for r in listener.reports if _is_loud(r.alert.level)})),
        bad_batches=tuple(sorted(bad_batches)),
    )


def rising(steps: Iterable[int], is_true: Iterable[bool]) -> tuple[Alarm, ...]:
    """Return the alarms of a plain rule, from whether it is true at each sample.

    >>> rising(range(1, 201), [30 <= step < 150 for step in range(1, 201)])
    (Alarm(step=30, predicted=None, height=None), Alarm(step=130, predicted=None, height=None))
    """
    alarms: list[Alarm] = []
    held: int | None = None
    for position, (step, fires) in enumerate(zip(steps, is_true, strict=True)):
        if not fires or position < SKIP:
            continue
        if held is None or step - held > REARM or step - alarms[-1].step >= REPEAT:
            alarms.append(Alarm(step=step))
        held = step
    return tuple(alarms)


class _Listener:
    """A person who reads every report."""

    def __init__(self) -> None:
        self.alarms: list[Alarm] = []
        self.reports: list[Report] = []
        self._warned: str | None = None
        """Id of the latest alert that alarmed."""
        self._is_open = False
        """Whether that alert is open."""

    def hear(self, step: int, reports: list[Alert], verdict: Verdict, *, is_judged: bool) -> None:
        """Read the reports of one step, and note whether one of them is an alarm."""
        self.reports += [Report(step=step, alert=alert) for alert in reports]
        for alert in reports:
            if alert.id == self._warned:
                self._is_open = alert.closed_at is None
            elif alert.kind == AlertKind.SPIKE_PREDICTED and _is_loud(alert.level) and is_judged:
                self._warned, self._is_open = alert.id, alert.closed_at is None
                self._alarm(step, alert.predicted_step, alert.evidence)
        if not self._is_open or step - self.alarms[-1].step < REPEAT:
            return
        for finding in verdict.findings:
            if finding.kind is AlertKind.SPIKE_PREDICTED and _is_loud(finding.level):
                self._alarm(step, finding.predicted_step, finding.evidence)

    def _alarm(self, step: int, predicted: PredictedStep | None, evidence: Evidence) -> None:
        self.alarms.append(Alarm(step=step, predicted=predicted, height=_height_in(evidence)))


def _is_loud(level: str) -> bool:
    return LEVEL_RANK[level] >= LEVEL_RANK[AlertLevel.WARNING]


def _height_in(evidence: Evidence) -> Height | None:
    """Return the expected height that is part of the evidence; None if it has none."""
    low, best, high = (evidence.get(f"expected_rise{end}") for end in ("_low", "", "_high"))
    if not isinstance(low, float) or not isinstance(best, float) or not isinstance(high, float) or best <= 0:
        return None
    return Height(low=low, best=best, high=high)
