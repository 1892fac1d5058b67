"""Scores of one method on one recording: which spikes its alarms were early for, which were false, and how true. Pure.

A *method* is the detectors of this program, with or without curvature, or a plain rule. Only what people are told at
level warning or above counts; the bad batches that were named are listed besides. `truth` has the rules for early and
false alarms. The forecast of an event is that of its first early alarm, as it was told then.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from server.evaluation.alarms import Alarm, Replayed, Report
from server.evaluation.truth import AFTER, TrueEvent, Truth
from server.models import AlertKind, Cause

NARROW: Final = 1.5
"""Largest width of a useful range of dates, in units of the time that was left."""
DATE_FACTOR: Final = 2.0
"""Factor within which a forecast date, counted from its alarm, is right."""
HEIGHT_FACTOR: Final = 3.0
"""Factor within which a forecast height is right."""
BEFORE: Final = 5
"""Number of steps before an onset from which an alert is about the event."""
EVENTS: Final = (AlertKind.SPIKE, AlertKind.NONFINITE, AlertKind.BAD_BATCH, AlertKind.DIVERGENCE)
"""Kinds of alerts about something that has happened to the loss, the one first that explains an event best."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """An event that was told of early, with its first early alarm."""

    event: TrueEvent
    alarm: Alarm

    @property
    def lead(self) -> int:
        """Number of steps from the alarm to the onset."""
        return self.event.onset - self.alarm.step

    @property
    def lead_to_peak(self) -> int:
        """Number of steps from the alarm to the largest loss."""
        return self.event.peak - self.alarm.step

    @property
    def is_in_band(self) -> bool | None:
        """Whether the onset came within the forecast range; None without a date."""
        band = self.alarm.predicted
        return None if band is None else band.low <= self.event.onset <= band.high

    @property
    def width(self) -> float | None:
        """Width of the forecast range in units of the time that was left; None without a date."""
        band = self.alarm.predicted
        return None if band is None else (band.high - band.low) / self.lead

    @property
    def date_ratio(self) -> float | None:
        """Ratio of the steps that it took to the steps that were forecast; None without a date."""
        band = self.alarm.predicted
        return None if band is None else self.lead / max(1, band.best - self.alarm.step)

    @property
    def is_date_right(self) -> bool | None:
        """Whether it came after half to twice the forecast number of steps; None without a date."""
        ratio = self.date_ratio
        return None if ratio is None else 1 / DATE_FACTOR <= ratio <= DATE_FACTOR

    @property
    def height_ratio(self) -> float | None:
        """Ratio of the rise that came to the one that was forecast; None if one of them is not known."""
        if self.alarm.height is None or self.event.rise is None:
            return None
        return self.event.rise / self.alarm.height.best

    @property
    def is_height_right(self) -> bool | None:
        """Whether the loss rose by a third to three times the forecast; None if one of them is not known."""
        ratio = self.height_ratio
        return None if ratio is None else 1 / HEIGHT_FACTOR <= ratio <= HEIGHT_FACTOR


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """One run as one method told it, compared to the truth, in steps of the recording."""

    truth: Truth
    alarms: tuple[Alarm, ...]
    recalled: tuple[Recall, ...]
    useful: int
    """Number of alarms before an event's peak."""
    false: tuple[int, ...]
    """Steps of the false alarms."""
    causes: tuple[tuple[TrueEvent, Cause], ...] = ()
    """Events whose cause is known and that an alert is about, each with the cause that was named."""
    kinds: tuple[str, ...] = ()
    """Sorted kinds of all alerts at level warning or above."""
    bad_batches: tuple[int, ...] = ()
    """Steps of the batches that were named bad, at whatever level; see `Replayed`."""

    @property
    def name(self) -> str:
        """Name of the recording."""
        return self.truth.name

    @cached_property
    def events(self) -> tuple[TrueEvent, ...]:
        """Events that could be recalled."""
        return self.truth.judged

    @property
    def clean_steps(self) -> int:
        """Number of steps at which an alarm would be false."""
        return len(self.truth.clean)


def score(truth: Truth, replayed: Replayed) -> RunScore:
    """Compare what was told to the truth."""
    alarms = replayed.alarms
    recalled: list[Recall] = []
    judged = truth.judged
    previous_end = 0
    for event in truth.events:
        early = [a for a in alarms if max(event.first, previous_end + 1) <= a.step < event.onset]
        previous_end = event.end
        if early and event in judged:
            recalled.append(Recall(event=event, alarm=early[0]))
    return RunScore(
        truth=truth,
        alarms=alarms,
        recalled=tuple(recalled),
        useful=sum(any(e.first <= a.step < max(e.peak, e.onset + 1) for e in truth.events) for a in alarms),
        false=tuple(a.step for a in alarms if a.step in truth.clean),
        causes=_causes(judged, recalled, replayed.reports),
        kinds=replayed.kinds,
        bad_batches=replayed.bad_batches,
    )


def _causes(
    events: tuple[TrueEvent, ...], recalled: list[Recall], reports: tuple[Report, ...]
) -> tuple[tuple[TrueEvent, Cause], ...]:
    """Return the cause that people read for each event with a known cause.

    It is that of the alert about the event itself, as it reads 20 steps after the event, or of the prediction where no
    such alert was raised.
    """
    warned = {recall.event.onset for recall in recalled}
    named = []
    for event in events:
        if not event.causes or not reports:
            continue
        texts: dict[str, Cause] = {}
        for report in reports:
            alert = report.alert
            if not event.onset - BEFORE <= report.step <= event.end + AFTER:
                is_sign = alert.kind == AlertKind.SPIKE_PREDICTED and event.onset in warned
                if not (is_sign and event.first <= report.step < event.onset):
                    continue
            elif alert.kind in EVENTS and alert.step < event.onset - BEFORE:
                continue
            texts[alert.kind] = Cause(alert.cause)
        for kind in (*EVENTS, AlertKind.SPIKE_PREDICTED):
            if kind in texts:
                named.append((event, texts[kind]))
                break
    return tuple(named)
