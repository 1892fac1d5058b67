"""Outbox of notifications: stored together with the alerts they report, and claimed by one dispatcher at a time.

A dispatcher claims a whole channel, not a single notification. The notifications of a channel therefore stay in order,
share one thread and can be combined into a digest, and a slow channel delays no other. The claim is a lease: if the
dispatcher dies, another one takes the channel over and uses the same message ids.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Row, and_, delete, exists, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from client_sdk import answers
from client_sdk.protocol import Alert
from client_sdk.vocabulary import AlertState
from server.notification import (
    RATE_WINDOW,
    AlertChange,
    AlertedRun,
    Change,
    Channel,
    NotificationSettings,
    NotifiedIncident,
    OutboxRow,
    Recipients,
)
from server.schema import alerts, channels, outbox, runs, told, writers
from server.storage.channels import read_settings, to_channel
from server.storage.database import Database, insert_ignore

NAMESPACE: Final = uuid.UUID("0f5c4f0e-8f0c-5a9b-8f6d-3a0e6a0f1c11")
GATHER: Final = 0.1
"""Seconds that a notification waits for others that may share a digest with it."""
IMPORTED: Final = "import"
"""Name of the SDK that imports store. Nobody is notified of imported runs."""
MAX_WAITING: Final = 1_000
"""Maximum number of waiting notifications of a channel that are read together."""


async def enqueue(
    connection: AsyncConnection, run_id: str, changes: Sequence[AlertChange], recipients: Recipients, now: float
) -> None:
    """Queue the notifications about changed alerts of a run, in the transaction that stores these alerts.

    ``recipients`` decides which channels are notified of which changes. Queueing a change again has no effect.
    """
    enabled = [
        to_channel(row) for row in await connection.execute(select(channels).where(channels.c.enabled.is_(True)))
    ]
    if not enabled:
        return
    is_imported = exists().where(writers.c.run_id == run_id, writers.c.sdk == IMPORTED)
    query = select(runs.c.project, is_imported.label("is_imported")).where(runs.c.id == run_id)
    row = (await connection.execute(query)).first()
    if row is None:
        return
    run = AlertedRun(project=row.project, is_imported=row.is_imported)
    rows = [
        {
            "message_id": str(
                uuid.uuid5(NAMESPACE, f"{item.channel_id}:{item.alert.id}:{item.change}:{item.alert.level}")
            ),
            "channel_id": item.channel_id,
            "run_id": run_id,
            "alert_id": item.alert.id,
            "incident_id": item.incident_id,
            "change": item.change,
            "body": msgspec.to_builtins(item.alert),
            "state": "pending",
            "not_before": now + GATHER,
            "created_at": now,
        }
        for item in recipients(run, changes, enabled)
    ]
    if rows:
        await connection.execute(insert_ignore(connection, outbox), rows)


@dataclass(frozen=True, kw_only=True)
class ChannelBacklog:
    """Everything that determines what one channel receives next, read from one snapshot."""

    waiting: tuple[OutboxRow, ...]
    """Waiting notifications, in the order of the changes that they report."""
    notified: tuple[NotifiedIncident, ...]
    """Incidents that the channel has been notified of: those of the waiting notifications, those of the same runs, and
    all recent ones.
    """
    settings: NotificationSettings
    sent_times: Mapping[str, tuple[float, ...]]
    """Unix times of the notifications about these runs within `RATE_WINDOW`, keyed by run id."""


class OutboxStore:
    """Stores queued notifications and the progress of their delivery."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, owner: str, now: float, until: float) -> Channel | None:
        """Lease an enabled channel with waiting notifications until a time. Returns None if no such channel is free.

        On Postgres, a dispatcher skips the channels that another one is claiming. On SQLite, writing transactions
        exclude each other.
        """
        free = (
            select(channels)
            .where(
                channels.c.enabled.is_(True),
                channels.c.leased_until <= now,
                channels.c.retry_at <= now,
                exists().where(_waits_for(channels.c.id), outbox.c.not_before <= now),
            )
            .order_by(channels.c.retry_at, channels.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        async with self._database.write() as connection:
            row = (await connection.execute(free)).first()
            if row is None:
                return None
            await connection.execute(
                update(channels).where(channels.c.id == row.id).values(leased_by=owner, leased_until=until)
            )
            return to_channel(row)

    async def read(self, channel_id: str, now: float) -> ChannelBacklog:
        """Return the waiting notifications of a claimed channel, and the incidents that it has been notified of."""
        waiting_query = (
            select(
                outbox,
                runs.c.name.label("run_name"),
                runs.c.project,
                runs.c.stage,
                alerts.c.silenced_until,
                alerts.c.acknowledged_at,
                alerts.c.state.label("alert_state"),
            )
            .join(runs, runs.c.id == outbox.c.run_id)
            .outerjoin(alerts, alerts.c.id == outbox.c.alert_id)
            # together with those that have just arrived
            .where(_waits_for(channel_id), outbox.c.not_before <= now + GATHER)
            .order_by(outbox.c.id)
            .limit(MAX_WAITING)
        )
        async with self._database.snapshot() as connection:
            waiting = tuple(_to_row(row) for row in await connection.execute(waiting_query))
            settings = await read_settings(connection, now)
            about = or_(
                told.c.told_at > now - settings.digest.window_seconds,
                told.c.run_id.in_({row.run_id for row in waiting}),
                told.c.incident_id.in_({row.incident_id for row in waiting}),
            )
            known = await connection.execute(
                select(told).where(told.c.channel_id == channel_id, about).order_by(told.c.told_at)
            )
            recent = await connection.execute(
                select(outbox.c.run_id, outbox.c.done_at)
                .distinct()  # the rows of one notification are done at the same time
                .where(
                    outbox.c.channel_id == channel_id,
                    outbox.c.state == "sent",
                    outbox.c.done_at > now - RATE_WINDOW,
                    outbox.c.run_id.in_({row.run_id for row in waiting}),
                )
            )
            sent_times: dict[str, tuple[float, ...]] = {}
            for run_id, done_at in recent:
                sent_times[run_id] = (*sent_times.get(run_id, ()), done_at)
            return ChannelBacklog(
                sent_times=sent_times,
                waiting=waiting,
                notified=tuple(_to_notified(row) for row in known),
                settings=settings,
            )

    async def begin(self, channel_id: str, owner: str, ids: Sequence[int], until: float) -> bool:
        """Count a delivery attempt, and extend the lease to cover it. Returns False and counts nothing if the lease is
        lost.
        """
        async with self._database.write() as connection:
            if not await self._hold(connection, channel_id, owner, leased_until=until):
                return False
            await connection.execute(update(outbox).where(outbox.c.id.in_(ids)).values(attempts=outbox.c.attempts + 1))
            return True

    async def sent(
        self, channel_id: str, owner: str, ids: Sequence[int], incidents: Sequence[NotifiedIncident], now: float
    ) -> None:
        """Record that notifications were delivered as one, and the resulting state of their incidents."""
        async with self._database.write() as connection:
            # The channel is locked first, as everywhere, so that two transactions never wait for each other.
            await connection.execute(
                update(channels).where(channels.c.id == channel_id).values(last_sent_at=now, last_error=None)
            )
            await self._hold(connection, channel_id, owner, failures=0)
            await connection.execute(
                update(outbox).where(outbox.c.id.in_(ids)).values(state="sent", done_at=now, note=None)
            )
            dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
            for item in incidents:
                held = {
                    "level": item.level,
                    "told_at": item.notified_at,
                    "thread": item.thread,
                    "in_digest": item.in_digest,
                    "closed": item.closed,
                }
                insert = dialect.insert(told).values(
                    channel_id=channel_id,
                    incident_id=item.incident_id,
                    run_id=item.run_id,
                    family=item.cooldown_group,
                    **held,
                )
                await connection.execute(
                    insert.on_conflict_do_update(index_elements=[told.c.channel_id, told.c.incident_id], set_=held)
                )

    async def skip(self, ids: Sequence[int], note: str, now: float) -> None:
        """Mark notifications as not to be sent. ``note`` explains why."""
        await self._end(ids, "skipped", note, now)

    async def give_up(self, ids: Sequence[int], note: str, now: float) -> None:
        """Mark notifications as failed, because the receiving service permanently rejects these, though not others."""
        await self._end(ids, "failed", note, now)

    async def hold_back(self, ids: Sequence[int], until: float) -> None:
        """Delay notifications until a time."""
        async with self._database.write() as connection:
            await connection.execute(update(outbox).where(outbox.c.id.in_(ids)).values(not_before=until))

    async def retry_later(self, channel_id: str, owner: str, retry_at: float, error: str) -> None:
        """Record a temporary failure: the channel is not tried again before a time."""
        async with self._database.write() as connection:
            await self._hold(
                connection, channel_id, owner, retry_at=retry_at, last_error=error, failures=channels.c.failures + 1
            )

    async def disable(self, channel_id: str, reason: str, now: float) -> None:
        """Disable a channel that permanently rejects notifications, and mark the waiting ones as failed.

        Users see the reason.
        """
        async with self._database.write() as connection:
            await connection.execute(
                update(channels)
                .where(channels.c.id == channel_id)
                .values(enabled=False, disabled_reason=reason, last_error=reason)
            )
            await connection.execute(
                update(outbox).where(_waits_for(channel_id)).values(state="failed", note=reason, done_at=now)
            )

    async def release(self, channel_id: str, owner: str) -> None:
        """End the lease, if it is still held."""
        async with self._database.write() as connection:
            await self._hold(connection, channel_id, owner, leased_until=0.0, leased_by=None)

    async def of_alert(self, alert_id: str) -> list[answers.Notification]:
        """Return the notifications about an alert, one for each change and channel, in the order of their creation."""
        query = (
            select(
                channels.c.name.label("channel"),
                outbox.c.message_id,
                outbox.c.change,
                outbox.c.state,
                outbox.c.note,
                outbox.c.attempts,
                outbox.c.created_at,
                outbox.c.done_at,
            )
            .join(channels, channels.c.id == outbox.c.channel_id)
            .where(outbox.c.alert_id == alert_id)
            .order_by(outbox.c.id)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings()
            return [msgspec.convert(row, answers.Notification, from_attributes=True) for row in rows]

    async def next_due(self) -> float | None:
        """Return the Unix time at which the next notification is due, or None if none is waiting."""
        due = (
            select(func.min(outbox.c.not_before).label("at"), channels.c.retry_at, channels.c.leased_until)
            .join(channels, channels.c.id == outbox.c.channel_id)
            .where(outbox.c.state == "pending", channels.c.enabled.is_(True))
            .group_by(channels.c.id, channels.c.retry_at, channels.c.leased_until)
        )
        async with self._database.read() as connection:
            times = [max(row.at, row.retry_at, row.leased_until) for row in await connection.execute(due)]
        return min(times, default=None)

    async def forget(self, before: float) -> None:
        """Remove notifications that were completed before a time, and closed incidents that were reported before it."""
        async with self._database.write() as connection:
            await connection.execute(delete(outbox).where(outbox.c.done_at < before))
            await connection.execute(delete(told).where(told.c.told_at < before, told.c.closed.is_(True)))

    async def _hold(self, connection: AsyncConnection, channel_id: str, owner: str, **values: Any) -> bool:
        """Change a channel if ``owner`` still holds its lease. Returns whether it does."""
        changed = await connection.execute(
            update(channels).where(channels.c.id == channel_id, channels.c.leased_by == owner).values(**values)
        )
        return changed.rowcount == 1

    async def _end(self, ids: Sequence[int], state: str, note: str, now: float) -> None:
        async with self._database.write() as connection:
            await connection.execute(
                update(outbox).where(outbox.c.id.in_(ids)).values(state=state, note=note, done_at=now)
            )


def _waits_for(channel_id: str | ColumnElement[str]) -> ColumnElement[bool]:
    return and_(outbox.c.channel_id == channel_id, outbox.c.state == "pending")


def _to_row(row: Row[Any]) -> OutboxRow:
    return OutboxRow(
        id=row.id,
        message_id=row.message_id,
        channel_id=row.channel_id,
        run_id=row.run_id,
        run_name=row.run_name,
        project=row.project,
        incident_id=row.incident_id,
        change=Change(row.change),
        alert=msgspec.convert(row.body, Alert),
        created_at=row.created_at,
        delivery_attempts=row.attempts,
        stage=row.stage,
        silenced_until=row.silenced_until,
        acknowledged=row.acknowledged_at is not None,
        still_open=row.alert_state == AlertState.OPEN,
    )


def _to_notified(row: Row[Any]) -> NotifiedIncident:
    return NotifiedIncident(
        incident_id=row.incident_id,
        run_id=row.run_id,
        cooldown_group=row.family,
        level=row.level,
        notified_at=row.told_at,
        thread=row.thread,
        in_digest=row.in_digest,
        closed=row.closed,
    )
