"""Scores: what the product said about logs, held against their labels.

* An alert belongs to a labelled event if it names a step from five records before the event's first record to five
  records after its last one; among several events, to the one that begins nearest to the named step.
* A rise (sustained, divergence) is *found* if a message belongs to it, and *found at its first record* if one of its
  alerts names exactly that record. The *step error* is the number of records between the two.
* A message that belongs to no labelled event is *false*. Only logs with labels count.
* A gradient alarm belongs to an event from 20 records before its first record on. Any other is false.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from campaigns.real_logs.coincidences import CoincidenceScore, LossLog, measure
from campaigns.real_logs.labels import RISES, LabelledEvent
from campaigns.real_logs.replay import Replayed, Told
from server.models import AlertKind, Cause

BEFORE: Final = 5
"""Number of records before an event within which an alert that names them belongs to it."""
GRADIENT_BEFORE: Final = 20
"""Number of records before a rise within which a gradient alarm belongs to it."""
AFTER: Final = 5
"""Number of records after an event within which an alert still belongs to it."""
GRADIENT_KIND: Final = "gradient-explosion"
"""Kind of alert that is about the gradient norm alone."""
LOSS_KINDS: Final = frozenset(
    {AlertKind.SPIKE.value, AlertKind.DIVERGENCE.value, AlertKind.BAD_BATCH.value, AlertKind.NONFINITE.value}
)
"""Kinds of alerts that say something about the loss."""


@dataclass(frozen=True, kw_only=True)
class EventScore:
    """One labelled event with what was said about it."""

    log: str
    event: LabelledEvent
    alerts: tuple[Told, ...]
    """Alerts about the loss that belong to it."""
    error: int | None
    """Number of records from the labelled first record to the nearest one named; None if the event was missed."""
    delay: int | None
    """Number of records from the first record to the first message; None without a message."""
    gradient_lead: int | None = None
    """Number of records from the first gradient alarm to the first record of the rise; None without one."""
    gradient_delay: int | None = None
    """Number of records from the first anomalous gradient norm to the first gradient alarm; None without either."""

    @property
    def is_rise(self) -> bool:
        """Whether the event is one that must be found at its first record."""
        return self.event.kind in RISES

    @property
    def is_found(self) -> bool:
        """Whether a message belongs to the event."""
        return any(alert.is_message for alert in self.alerts)

    @property
    def is_found_at_first(self) -> bool:
        """Whether the event was found, and one of its alerts names its first record."""
        return self.is_found and self.error == 0

    @property
    def is_called_bad_batch(self) -> bool:
        """Whether an alert calls the event a bad batch."""
        return any(alert.cause == Cause.BAD_BATCH or alert.kind == AlertKind.BAD_BATCH for alert in self.alerts)

    @property
    def cause(self) -> str:
        """The cause that the first message gives, or the first alert; empty if there is none."""
        told = sorted(self.alerts, key=lambda alert: (not alert.is_message, alert.opened_step))
        return told[0].cause if told else ""


@dataclass(frozen=True, kw_only=True)
class LogScore:
    """One log with its scores."""

    replayed: Replayed
    is_labelled: bool
    events: tuple[EventScore, ...]
    false: tuple[Told, ...]
    """Messages outside all labelled events, other than gradient alarms."""
    false_gradient: tuple[Told, ...]
    """Gradient alarms outside all labelled events."""


@dataclass(kw_only=True)
class KindScore:
    """The scores of all logs of a kind, added up."""

    name: str
    logs: int = 0
    labelled: int = 0
    records: int = 0
    steps: int = 0
    gradient_records: int = 0
    gradient_steps: int = 0
    """Steps and records of the logs with gradient norms."""
    watches: int = 0
    messages: int = 0
    messages_by_kind: Counter[str] = field(default_factory=Counter)
    forecasts: int = 0
    """Number of alerts that predicted a spike, at any level."""
    events: list[EventScore] = field(default_factory=list)
    false: list[tuple[str, Told]] = field(default_factory=list)
    false_gradient: list[tuple[str, Told]] = field(default_factory=list)
    loss_logs: list[LossLog] = field(default_factory=list)
    """Losses and outliers of the logs of every step."""

    def add(self, score: LogScore) -> None:
        """Add the scores of a log."""
        replayed = score.replayed
        self.logs += 1
        self.labelled += score.is_labelled
        self.records += len(replayed.records)
        self.steps += replayed.steps
        if replayed.loss_log is not None:
            self.loss_logs.append(replayed.loss_log)
        if replayed.has_gradients:
            self.gradient_records += len(replayed.records)
            self.gradient_steps += replayed.steps
        for alert in replayed.alerts:
            self.forecasts += alert.kind == AlertKind.SPIKE_PREDICTED
            if alert.is_message:
                self.messages += 1
                self.messages_by_kind[alert.kind] += 1
            else:
                self.watches += 1
        self.events += score.events
        self.false += [(replayed.name, alert) for alert in score.false]
        self.false_gradient += [(replayed.name, alert) for alert in score.false_gradient]

    @cached_property
    def coincidences(self) -> CoincidenceScore:
        """Score of the outliers that the logs show together, as if they were runs of one project."""
        return measure(self.loss_logs)

    @property
    def rises(self) -> list[EventScore]:
        """The labelled rises."""
        return [event for event in self.events if event.is_rise]

    @property
    def restarts(self) -> list[EventScore]:
        """The labelled restarts."""
        return [event for event in self.events if event.event.kind == "restart"]


def judge(replayed: Replayed, labels: tuple[LabelledEvent, ...] | None) -> LogScore:
    """Hold what was said about a log against its labels; `None` stands for a log that nobody has labelled."""
    labelled = tuple(event for event in labels or () if replayed.records and _overlaps(replayed.records, event))
    about_loss = [alert for alert in replayed.alerts if alert.kind in LOSS_KINDS]
    messages = [alert for alert in replayed.alerts if alert.is_message]
    gradient = [alert for alert in messages if alert.kind == GRADIENT_KIND]
    others = [alert for alert in messages if alert.kind != GRADIENT_KIND]
    events = tuple(_score(replayed, event, labelled, about_loss, gradient) for event in labelled)
    return LogScore(
        replayed=replayed,
        is_labelled=labels is not None,
        events=events,
        false=() if labels is None else tuple(_outside(replayed, others, labelled, BEFORE)),
        false_gradient=tuple(_outside(replayed, gradient, labelled, GRADIENT_BEFORE)),
    )


def _outside(
    replayed: Replayed, alerts: Iterable[Told], labelled: tuple[LabelledEvent, ...], before: int
) -> Iterator[Told]:
    """Yield the alerts that belong to no labelled event."""
    for alert in alerts:
        if not any(_belongs(replayed.records, alert, event, before) for event in labelled):
            yield alert


def add_up(scores: Iterable[LogScore]) -> dict[str, KindScore]:
    """Return the scores by kind of log, in the order of the names."""
    kinds: dict[str, KindScore] = {}
    for score in sorted(scores, key=lambda score: score.replayed.kind):
        name = score.replayed.kind
        kinds.setdefault(name, KindScore(name=name)).add(score)
    return kinds


def _score(
    replayed: Replayed,
    event: LabelledEvent,
    labelled: tuple[LabelledEvent, ...],
    about_loss: list[Told],
    gradient: list[Told],
) -> EventScore:
    records = replayed.records
    alerts = tuple(alert for alert in about_loss if _nearest(records, alert, labelled) is event)
    first, last = bisect_left(records, event.first_step), bisect_left(records, event.up_to_step or event.first_step)
    errors = [_error(bisect_left(records, alert.named_step), first, last) for alert in alerts]
    delays = [alert.message_record - first for alert in alerts if alert.message_record is not None]
    alarms = [
        alert.message_record
        for alert in gradient
        if alert.message_record is not None and _belongs(records, alert, event, GRADIENT_BEFORE)
    ]
    alarm = min(alarms, default=None)
    anomaly = None if event.gradient_step is None else bisect_left(records, event.gradient_step)
    return EventScore(
        log=replayed.name,
        event=event,
        alerts=alerts,
        error=min(errors, key=abs, default=None),
        delay=min(delays, default=None),
        gradient_lead=None if alarm is None else last - alarm,
        gradient_delay=None if alarm is None or anomaly is None else alarm - anomaly,
    )


def _error(named: int, first: int, last: int) -> int:
    return named - last if named > last else min(named - first, 0)


def _nearest(records: tuple[int, ...], alert: Told, labelled: tuple[LabelledEvent, ...]) -> LabelledEvent | None:
    """Return the event that an alert belongs to: the one whose first record is nearest to the named one."""
    mine = [event for event in labelled if _belongs(records, alert, event, BEFORE)]
    named = bisect_left(records, alert.named_step)
    return min(mine, key=lambda event: abs(named - bisect_left(records, event.first_step)), default=None)


def _belongs(records: tuple[int, ...], alert: Told, event: LabelledEvent, before: int) -> bool:
    """Return whether an alert names a record of an event, or one shortly before or after it."""
    first = bisect_left(records, event.first_step) - before
    last = bisect_right(records, event.last_step) - 1 + AFTER
    return first <= bisect_left(records, alert.named_step) <= last


def _overlaps(records: tuple[int, ...], event: LabelledEvent) -> bool:
    return event.first_step <= records[-1] and event.last_step >= records[0]
