"""Who is told what, and when: cooldown, digests, quiet hours, silences, and what became old news. Pure.

* One incident is told once, when it opens for this channel; then what changed: graver, came, did not come, over.
* What was over before it could be told is told only if a spike came.
* After an incident of a run, others of the same family (`family_of`) and no higher level wait for the end of the
  cooldown, and are told then if they still stand.
* Alerts of many runs within the digest's window become one message. A storm that builds up slowly costs at most
  ``threshold`` − 1 single messages; from then on what comes is gathered until the window ends.
* In quiet hours what is below their level waits for their end, and is told then if it still stands.
* What is silenced is not told at all.
* Once somebody has acknowledged an alert, nobody is called again for it: graver news and first messages that wait for
  their time are not sent. What became of it is told still: it came, it did not come, it is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from typing import Final
from zoneinfo import ZoneInfo

from client_sdk.vocabulary import LEVEL_RANK
from server.notification import (
    CLOSING,
    Change,
    Channel,
    NotificationSettings,
    OutboxRow,
    QuietHours,
    Silence,
    Told,
    family_of,
)

OLD_NEWS: Final = 6 * 3_600.0
"""Seconds after which nobody is told any more: of records that arrive late, or while a channel was down."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One message: what it tells, and all that it settles."""

    tells: tuple[OutboxRow, ...]
    """One row; of a digest one of each incident."""
    settles: tuple[OutboxRow, ...] = ()
    """Rows that are told with it."""
    told: Told | None = None
    """What the channel has been told of the incident."""

    @property
    def ids(self) -> list[int]:
        return [row.id for row in (*self.tells, *self.settles)]

    @property
    def is_digest(self) -> bool:
        return len(self.tells) > 1


@dataclass(kw_only=True)
class Plan:
    """What to do with everything that waits for a channel."""

    send: list[Delivery] = field(default_factory=list)
    skip: list[tuple[Sequence[OutboxRow], str]] = field(default_factory=list)
    hold: list[tuple[Sequence[OutboxRow], float]] = field(default_factory=list)


def plan(
    channel: Channel, waiting: Sequence[OutboxRow], told: Iterable[Told], settings: NotificationSettings, now: float
) -> Plan:
    """``told``: of the incidents and runs of the waiting rows, and of all runs within the digest's window."""
    known = {item.incident_id: item for item in told}
    result = Plan()
    openings: list[Delivery] = []
    for incident_id, news in _by_incident(waiting).items():
        rows = _in_time(news, settings.silences, now, result)
        if not rows:
            continue
        until = _quiet_until(channel, settings, rows, now)
        if until is not None:
            result.hold.append((rows, until))
            continue
        before = known.get(incident_id)
        if before is not None and not before.in_digest:
            _follow_up(rows, before, result)
            continue
        opening = _opening(rows, before, result)
        if opening is None:
            continue
        cooled = _cooldown_end(opening.tells[0], known.values(), settings.cooldown_seconds, now)
        if cooled is not None:
            result.hold.append(((*opening.tells, *opening.settles), cooled))
        else:
            openings.append(opening)
    _gather(openings, list(known.values()), settings, now, result)
    result.send.sort(key=lambda delivery: min(delivery.ids))
    return result


def quiet_end(hours: QuietHours, now: float) -> float | None:
    """When the quiet hours that hold at ``now`` end; None outside of them.

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


def told_after(delivery: Delivery, thread: str | None, now: float) -> list[Told]:
    """What the channel knows once the message has arrived."""
    if delivery.is_digest:
        return [_told(row, None, now, in_digest=True) for row in delivery.tells]
    [row] = delivery.tells
    before = None if delivery.told is None or delivery.told.in_digest else delivery.told
    return [_told(row, before, now, in_digest=False, thread=thread)]


def _told(row: OutboxRow, before: Told | None, now: float, *, in_digest: bool, thread: str | None = None) -> Told:
    level = row.alert.level
    if before is not None and LEVEL_RANK[before.level] > LEVEL_RANK[level]:
        level = before.level
    return Told(
        incident_id=row.incident_id,
        run_id=row.run_id,
        family=family_of(row.alert) if before is None else before.family,
        level=level,
        told_at=now,
        thread=thread if before is None or before.thread is None else before.thread,
        in_digest=in_digest,
        closed=row.change in CLOSING,
    )


def _by_incident(waiting: Sequence[OutboxRow]) -> dict[str, list[OutboxRow]]:
    found: dict[str, list[OutboxRow]] = {}
    for row in sorted(waiting, key=lambda row: row.id):
        found.setdefault(row.incident_id, []).append(row)
    return found


def _in_time(rows: list[OutboxRow], silences: Sequence[Silence], now: float, result: Plan) -> list[OutboxRow]:
    """Those that are neither silenced, nor taken note of, nor old."""
    kept = []
    for row in rows:
        if _is_silenced(row, silences, now):
            result.skip.append(([row], "silenced"))
        elif row.acknowledged and row.change not in CLOSING:
            result.skip.append(([row], "acknowledged"))
        elif now - row.created_at > OLD_NEWS:
            result.skip.append(([row], "the channel could not be reached for too long"))
        elif row.created_at - row.alert.opened_at > OLD_NEWS and row.change not in CLOSING:
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
    own = channel.settings.get("quiet_hours")
    hours = QuietHours(**own) if own is not None else settings.quiet_hours
    if hours is None or any(LEVEL_RANK[row.alert.level] >= LEVEL_RANK[hours.min_level] for row in rows):
        return None
    return quiet_end(hours, now)


def _opening(rows: list[OutboxRow], before: Told | None, result: Plan) -> Delivery | None:
    """The rows as one first message; None where there is nothing to tell any more."""
    if before is not None and all(LEVEL_RANK[row.alert.level] <= LEVEL_RANK[before.level] for row in rows):
        result.skip.append((rows, "told in a digest"))
        return None
    came = [row for row in rows if row.change is Change.CONFIRMED]
    standing = [row for row in rows if row.change in (Change.OPENED, Change.ESCALATED) and row.still_open]
    chosen = came or standing
    if not chosen:
        result.skip.append((rows, "over before it was told"))
        return None
    rest = tuple(row for row in rows if row is not chosen[-1])
    return Delivery(tells=(chosen[-1],), settles=rest, told=before)


def _follow_up(rows: list[OutboxRow], before: Told, result: Plan) -> None:
    """What changed since the incident was told, the gravest last word first in time."""
    closing = [row for row in rows if row.change in CLOSING]
    graver = [
        row for row in rows if row.change not in CLOSING and LEVEL_RANK[row.alert.level] > LEVEL_RANK[before.level]
    ]
    chosen = closing or graver[-1:]
    rest = [row for row in rows if row not in chosen]
    if rest:
        result.skip.append((rest, "the incident was told already"))
    result.send += [Delivery(tells=(row,), told=before) for row in chosen]


def _cooldown_end(row: OutboxRow, told: Iterable[Told], cooldown: float, now: float) -> float | None:
    ends = [
        item.told_at + cooldown
        for item in told
        if item.run_id == row.run_id
        and item.incident_id != row.incident_id
        and item.family == family_of(row.alert)
        and LEVEL_RANK[item.level] >= LEVEL_RANK[row.alert.level]
    ]
    return max((end for end in ends if end > now), default=None)


def _gather(
    openings: list[Delivery], told: Sequence[Told], settings: NotificationSettings, now: float, result: Plan
) -> None:
    """Openings as single messages, as one digest, or held until the window ends."""
    digest = settings.digest
    rows = [row for opening in openings for row in (*opening.tells, *opening.settles)]
    runs = {row.run_id for row in rows}
    recent = [item for item in told if item.told_at > now - digest.window_seconds]
    last_digest = max((item.told_at for item in recent if item.in_digest), default=None)
    # Several that have waited for longer than the window were held by a storm, by quiet hours or by an outage.
    have_waited = len(runs) > 1 and any(now - row.created_at > digest.window_seconds for row in rows)
    if last_digest is not None and rows:
        result.hold.append((rows, last_digest + digest.window_seconds))
    elif len(runs) >= digest.threshold or have_waited:
        tells = tuple(opening.tells[0] for opening in openings)
        result.send.append(Delivery(tells=tells, settles=tuple(row for row in rows if row not in tells)))
    elif len(runs | {item.run_id for item in recent}) >= digest.threshold and rows:
        result.hold.append((rows, min(item.told_at for item in recent) + digest.window_seconds))
    else:
        result.send += openings
