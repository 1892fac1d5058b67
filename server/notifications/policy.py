"""Rules that decide which notifications a channel receives, and when. Pure.

* A channel is notified of an incident when it opens, and afterwards of its changes: escalated, confirmed, false alarm,
  resolved.
* An alert that lasted until its run ended is told so, never as resolved.
* An event that came and went before it could be sent is sent nevertheless, as such. A prediction that ended before it
  could be sent is sent only if the spike occurred, because otherwise nothing happened.
* An incident that becomes more severe within `ESCALATION_GAP` of its last notification waits for the end of that gap,
  and is sent then if it is still open.
* A run causes at most `MAX_PER_HOUR` notifications within an hour, unless its level rises or a prediction is settled.
  The others wait, and are sent as one digest of the run.
* After an incident of a run, others of the same cooldown group (`cooldown_group_of`) and of no higher level wait for
  the end of the cooldown, and are sent then if they are still open.
* Alerts of many runs within the digest window become one notification. A storm that builds up slowly causes at most
  ``threshold`` − 1 single notifications; the alerts after them are collected until the window ends.
* During quiet hours, alerts below the level of the quiet hours wait for their end, and are sent then if they are still
  open.
* Silenced alerts are never sent.
* After somebody has acknowledged an alert, neither its escalations nor a first notification that is still waiting are
  sent. Its end is: confirmed, false alarm, resolved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from typing import Final
from zoneinfo import ZoneInfo

from client_sdk.protocol import Alert
from client_sdk.vocabulary import LEVEL_RANK
from server.models import AlertKind, AlertLevel
from server.notification import (
    CLOSING,
    RATE_WINDOW,
    Change,
    Channel,
    NotificationSettings,
    NotifiedIncident,
    OutboxRow,
    QuietHours,
    Silence,
    cooldown_group_of,
)

MAX_NEWS_AGE: Final = 6 * 3_600.0
"""Age in seconds beyond which a change is not sent: its records arrived late, or the channel was unreachable."""
ESCALATION_GAP: Final = 30.0
"""Seconds after a notification of an incident within which its escalation waits, because it may end any moment."""
MAX_PER_HOUR: Final = 4
"""Maximum number of notifications about one run within `RATE_WINDOW`."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One notification to send, and the outbox rows that are done once it has arrived."""

    reports: tuple[OutboxRow, ...]
    """Rows that the notification reports: a single one, or one for each incident of a digest."""
    covers: tuple[OutboxRow, ...] = ()
    """Older rows of the same incidents that need no notification of their own."""
    incident: NotifiedIncident | None = None
    """The incident as the channel has received it so far; None if the channel has not been notified of it."""

    @property
    def ids(self) -> list[int]:
        """Ids of all outbox rows that the delivery completes."""
        return [row.id for row in (*self.reports, *self.covers)]

    @property
    def is_digest(self) -> bool:
        """Whether the notification reports several incidents."""
        return len(self.reports) > 1


@dataclass(kw_only=True)
class DeliveryPlan:
    """Decision about every row that waits for a channel."""

    send: list[Delivery] = field(default_factory=list)
    skip: list[tuple[Sequence[OutboxRow], str]] = field(default_factory=list)
    """Rows that are not sent, with the reason."""
    hold: list[tuple[Sequence[OutboxRow], float]] = field(default_factory=list)
    """Rows that wait, with the Unix time at which they are looked at again."""


def plan_deliveries(
    channel: Channel,
    waiting: Sequence[OutboxRow],
    notified: Iterable[NotifiedIncident],
    settings: NotificationSettings,
    now: float,
    *,
    sent_times: Mapping[str, Sequence[float]] | None = None,
) -> DeliveryPlan:
    """Return what to send, to skip and to hold back of the rows that wait for a channel.

    ``notified`` holds the incidents that the channel was notified of: those of the waiting rows, those of the same
    runs, and those of all runs within the digest window. ``sent_times`` holds the Unix times of the notifications that
    the channel received within `RATE_WINDOW`, keyed by run id.
    """
    known = {item.incident_id: item for item in notified}
    result = DeliveryPlan()
    openings: list[Delivery] = []
    for incident_id, news in _by_incident(waiting).items():
        rows = _relevant(news, settings.silences, now, result)
        if not rows:
            continue
        until = _quiet_until(channel, settings, rows, now)
        if until is not None:
            result.hold.append((rows, until))
            continue
        before = known.get(incident_id)
        if before is not None and not before.in_digest:
            _follow_up(rows, before, now, result)
            continue
        opening = _opening(rows, before, result)
        if opening is None:
            continue
        cooled = _cooldown_end(opening.reports[0], known.values(), settings.cooldown_seconds, now)
        if cooled is not None:
            result.hold.append(((*opening.reports, *opening.covers), cooled))
        else:
            openings.append(opening)
    openings = _bound(openings, list(known.values()), settings, now, sent_times=sent_times or {}, result=result)
    _gather(openings, list(known.values()), settings, now, result)
    result.send.sort(key=lambda delivery: min(delivery.ids))
    return result


def quiet_end(hours: QuietHours, now: float) -> float | None:
    """Return the Unix time at which the current quiet hours end, or None outside of quiet hours.

    >>> night = QuietHours(start="22:00", end="07:00")
    >>> [quiet_end(night, 3600.0 * hour) for hour in (21, 23, 30, 31)]
    [None, 111600.0, 111600.0, None]
    """
    zone = ZoneInfo(hours.timezone)
    local = datetime.fromtimestamp(now, UTC).astimezone(zone)
    start, end = time_of_day.fromisoformat(hours.start), time_of_day.fromisoformat(hours.end)
    clock = local.time()
    inside = start <= clock < end if start <= end else clock >= start or clock < end
    if not inside:
        return None
    last = datetime.combine(local.date(), end, zone)
    if last <= local:
        last = datetime.combine(local.date() + timedelta(days=1), end, zone)
    return max(last.timestamp(), now + 1.0)


def incidents_after(delivery: Delivery, thread: str | None, now: float) -> list[NotifiedIncident]:
    """Return the delivery's incidents as the channel has received them once the notification has arrived.

    ``thread`` is Slack's id of the posted message, None for other channels.
    """
    if delivery.is_digest:
        return [_notified(row, None, now, in_digest=True) for row in delivery.reports]
    [row] = delivery.reports
    before = None if delivery.incident is None or delivery.incident.in_digest else delivery.incident
    return [_notified(row, before, now, in_digest=False, thread=thread)]


def _notified(
    row: OutboxRow, before: NotifiedIncident | None, now: float, *, in_digest: bool, thread: str | None = None
) -> NotifiedIncident:
    level = row.alert.level
    if before is not None and LEVEL_RANK[before.level] > LEVEL_RANK[level]:
        level = before.level
    return NotifiedIncident(
        incident_id=row.incident_id,
        run_id=row.run_id,
        cooldown_group=cooldown_group_of(row.alert) if before is None else before.cooldown_group,
        level=level,
        notified_at=now,
        thread=thread if before is None or before.thread is None else before.thread,
        in_digest=in_digest,
        closed=row.change in CLOSING or not row.still_open,
    )


def _by_incident(waiting: Sequence[OutboxRow]) -> dict[str, list[OutboxRow]]:
    found: dict[str, list[OutboxRow]] = {}
    for row in sorted(waiting, key=lambda row: row.id):
        found.setdefault(row.incident_id, []).append(row)
    return found


def _relevant(rows: list[OutboxRow], silences: Sequence[Silence], now: float, result: DeliveryPlan) -> list[OutboxRow]:
    """Return the rows that are neither silenced nor acknowledged nor too old, and skip the others."""
    kept = []
    for row in rows:
        if _is_silenced(row, silences, now):
            result.skip.append(([row], "silenced"))
        elif row.acknowledged and row.change not in CLOSING:
            result.skip.append(([row], "acknowledged"))
        elif now - row.created_at > MAX_NEWS_AGE:
            result.skip.append(([row], "the channel could not be reached for too long"))
        elif row.created_at - row.alert.opened_at > MAX_NEWS_AGE and row.change not in CLOSING:
            result.skip.append(([row], "it happened long before it arrived"))
        else:
            kept.append(row)
    return kept


def _is_silenced(row: OutboxRow, silences: Sequence[Silence], now: float) -> bool:
    if row.silenced_until is not None and row.silenced_until > now:
        return True
    return any(
        silence.until > now
        and silence.run_id in (None, row.run_id)
        and silence.project in (None, row.project)
        and silence.kind in (None, row.alert.kind)
        for silence in silences
    )


def _quiet_until(
    channel: Channel, settings: NotificationSettings, rows: Sequence[OutboxRow], now: float
) -> float | None:
    """Return the end of the quiet hours that hold the rows back, or None if the rows may be sent."""
    own = channel.settings.get("quiet_hours")
    hours = QuietHours(**own) if own is not None else settings.quiet_hours
    if hours is None or any(LEVEL_RANK[row.alert.level] >= LEVEL_RANK[hours.min_level] for row in rows):
        return None
    return quiet_end(hours, now)


def _opening(rows: list[OutboxRow], before: NotifiedIncident | None, result: DeliveryPlan) -> Delivery | None:
    """Return the first single notification of an incident, or None if nothing is left to report."""
    if before is not None and all(LEVEL_RANK[row.alert.level] <= LEVEL_RANK[before.level] for row in rows):
        result.skip.append((rows, "sent in a digest"))
        return None
    confirmed = [row for row in rows if row.change is Change.CONFIRMED]
    standing = [row for row in rows if row.change in (Change.OPENED, Change.ESCALATED) and row.still_open]
    chosen = confirmed[-1] if confirmed else max(standing, key=_severity, default=None)
    if chosen is not None:
        rest = tuple(row for row in rows if row is not chosen)
        return Delivery(reports=(chosen,), covers=rest, incident=before)
    passed = [row for row in rows if row.change in (Change.OPENED, Change.ESCALATED) and _has_happened(row.alert)]
    if not passed:
        result.skip.append((rows, "over before it was sent"))
        return None
    first = max(passed, key=_severity)
    latest = [row.alert for row in rows if row.alert.id == first.alert.id][-1]
    rest = tuple(row for row in rows if row is not first)
    return Delivery(reports=(dataclasses.replace(first, alert=latest),), covers=rest, incident=before)


def _severity(row: OutboxRow) -> tuple[int, int]:
    return LEVEL_RANK[row.alert.level], row.id


def _has_happened(alert: Alert) -> bool:
    """Return whether an alert is about an event of level warning or above that happened, not about a prediction."""
    return alert.kind != AlertKind.SPIKE_PREDICTED and alert.level != AlertLevel.WATCH


def _follow_up(rows: list[OutboxRow], before: NotifiedIncident, now: float, result: DeliveryPlan) -> None:
    """Send the changes that end an incident, or else send or hold its latest escalation, and skip the other rows."""
    closing = [row for row in rows if row.change in CLOSING and _ends(row, before)]
    ended = [row for row in closing if row.change is Change.ENDED]
    if len(ended) > 1:  # The end of a run ends all alerts of an incident at once, which is one notification.
        worst = max(ended, key=_severity)
        closing = [row for row in closing if row.change is not Change.ENDED or row is worst]
    escalated = [
        row
        for row in rows
        if row.change not in CLOSING and row.still_open and LEVEL_RANK[row.alert.level] > LEVEL_RANK[before.level]
    ]
    chosen = closing or escalated[-1:]
    rest = [row for row in rows if row not in chosen]
    if rest:
        result.skip.append((rest, "the incident was sent already"))
    if not closing and chosen and now < before.notified_at + ESCALATION_GAP:
        result.hold.append((chosen, before.notified_at + ESCALATION_GAP))
        return
    result.send += [Delivery(reports=(row,), incident=before) for row in chosen]


def _ends(row: OutboxRow, before: NotifiedIncident) -> bool:
    """Return whether a closing change ends the incident for its readers, whose alerts may be several.

    The end of a predicted spike is sent after that of its prediction. Otherwise one end is sent, and only that of an
    alert as severe as what was sent, because a less severe one may end while the incident continues.
    """
    if row.change not in (Change.RESOLVED, Change.ENDED) or "prediction_id" in row.alert.evidence:
        return True
    return not before.closed and LEVEL_RANK[row.alert.level] >= LEVEL_RANK[before.level]


def _cooldown_end(row: OutboxRow, notified: Iterable[NotifiedIncident], cooldown: float, now: float) -> float | None:
    ends = [
        item.notified_at + cooldown
        for item in notified
        if item.run_id == row.run_id
        and item.incident_id != row.incident_id
        and item.cooldown_group == cooldown_group_of(row.alert)
        and LEVEL_RANK[item.level] >= LEVEL_RANK[row.alert.level]
    ]
    return max((end for end in ends if end > now), default=None)


def _bound(
    openings: list[Delivery],
    notified: Sequence[NotifiedIncident],
    settings: NotificationSettings,
    now: float,
    *,
    sent_times: Mapping[str, Sequence[float]],
    result: DeliveryPlan,
) -> list[Delivery]:
    """Return the openings that may be sent now, several of one run as its digest; hold those that exceed its bound."""
    by_run: dict[str, list[Delivery]] = {}
    for opening in openings:
        by_run.setdefault(opening.reports[0].run_id, []).append(opening)
    allowed: list[Delivery] = []
    for run_id, group in by_run.items():
        times = sorted(time for time in sent_times.get(run_id, ()) if time > now - RATE_WINDOW)
        highest = max(
            (
                LEVEL_RANK[item.level]
                for item in notified
                if item.run_id == run_id and item.notified_at > now - RATE_WINDOW
            ),
            default=-1,
        )
        rows = [row for opening in group for row in (*opening.reports, *opening.covers)]
        rises = any(LEVEL_RANK[opening.reports[0].alert.level] > highest for opening in group)
        have_waited = any(now - row.created_at > settings.digest.window_seconds for row in rows)
        if len(times) >= MAX_PER_HOUR and not rises:
            result.hold.append((rows, times[-MAX_PER_HOUR] + RATE_WINDOW))
        elif len(group) > 1 and (have_waited or len(times) + len(group) > MAX_PER_HOUR):
            reports = tuple(opening.reports[0] for opening in group)
            allowed.append(Delivery(reports=reports, covers=_covered(group)))
        else:
            allowed += group
    return allowed


def _covered(deliveries: Sequence[Delivery]) -> tuple[OutboxRow, ...]:
    return tuple(row for delivery in deliveries for row in delivery.covers)


def _gather(
    openings: list[Delivery],
    notified: Sequence[NotifiedIncident],
    settings: NotificationSettings,
    now: float,
    result: DeliveryPlan,
) -> None:
    """Send the openings as single notifications or as one digest, or hold them until the digest window ends."""
    digest = settings.digest
    rows = [row for opening in openings for row in (*opening.reports, *opening.covers)]
    runs = {row.run_id for row in rows}
    recent = [item for item in notified if item.notified_at > now - digest.window_seconds]
    digests: dict[float, set[str]] = {}
    for item in recent:
        if item.in_digest:
            digests.setdefault(item.notified_at, set()).add(item.run_id)
    last_digest = max((sent_at for sent_at, of_runs in digests.items() if len(of_runs) > 1), default=None)
    # Several rows that have waited longer than the window were held back by a storm, quiet hours or an outage.
    have_waited = len(runs) > 1 and any(now - row.created_at > digest.window_seconds for row in rows)
    if last_digest is not None and rows:
        result.hold.append((rows, last_digest + digest.window_seconds))
    elif len(runs) >= digest.threshold or have_waited:
        reports = tuple(report for opening in openings for report in opening.reports)
        result.send.append(Delivery(reports=reports, covers=_covered(openings)))
    elif len(runs | {item.run_id for item in recent}) >= digest.threshold and rows:
        result.hold.append((rows, min(item.notified_at for item in recent) + digest.window_seconds))
    else:
        result.send += openings
