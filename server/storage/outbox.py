"""Messages that wait to be sent: written as one with what they tell, claimed by one sender at a time.

A sender claims a whole channel, not a message: what one channel is told keeps its order, shares one thread and can be
gathered into a digest, and a slow channel holds up no other. The claim is a lease; a sender that dies in between loses
it, and another goes on with the same message ids.
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
from server.models import AlertState
from server.notification import (
    Change,
    Channel,
    NotificationSettings,
    NotifiedIncident,
    OutboxRow,
    change_of,
    incident_of,
)
from server.schema import alerts, channels, outbox, runs, told, writers
from server.storage.channels import read_settings, to_channel
from server.storage.database import Database, insert_ignore

NAMESPACE: Final = uuid.UUID("0f5c4f0e-8f0c-5a9b-8f6d-3a0e6a0f1c11")
GATHER: Final = 0.1
"""Seconds that a message waits for others to share a digest with."""
IMPORTED: Final = "import"
"""What imports write where others write the version of their SDK. Their past is no news."""
MOST: Final = 1_000
"""Messages of a channel that are looked at together."""


async def enqueue(
    connection: AsyncConnection,
    run_id: str,
    before: Mapping[str, tuple[str, str]],
    changed: Sequence[Alert],
    now: float,
) -> None:
    """Note in the transaction that stores these alerts of a run whom to tell of them.

    ``before``: level and state of those that were stored already. Writing the same change again changes nothing.
    """
    changes = [(alert, change_of(alert, *before.get(alert.id, (None, None)))) for alert in changed]
    news = [(alert, change) for alert, change in changes if change is not None]
    if not news:
        return
    reachable = [
        to_channel(row) for row in await connection.execute(select(channels).where(channels.c.enabled.is_(True)))
    ]
    if not reachable:
        return
    imported = exists().where(writers.c.run_id == run_id, writers.c.sdk == IMPORTED)
    run = (await connection.execute(select(runs.c.project, imported).where(runs.c.id == run_id))).first()
    if run is None or run[1]:
        return
    rows = [
        {
            "message_id": str(uuid.uuid5(NAMESPACE, f"{channel.id}:{alert.id}:{change}:{alert.level}")),
            "channel_id": channel.id,
            "run_id": run_id,
            "alert_id": alert.id,
            "incident_id": incident_of(alert),
            "change": change,
            "body": msgspec.to_builtins(alert),
            "state": "pending",
            "not_before": now + GATHER,
            "created_at": now,
        }
        for alert, change in news
        for channel in reachable
        if channel.wants(run.project, alert.kind, alert.level)
    ]
    if rows:
        await connection.execute(insert_ignore(connection, outbox), rows)


async def levels_before(connection: AsyncConnection, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Level and state of these alerts as they are stored, for `enqueue`."""
    query = select(alerts.c.id, alerts.c.level, alerts.c.state).where(alerts.c.id.in_(ids))
    return {row.id: (row.level, row.state) for row in await connection.execute(query)}


@dataclass(frozen=True, kw_only=True)
class ChannelBacklog:
    """All that decides what one channel is told next, as of one moment."""

    waiting: tuple[OutboxRow, ...]
    """In the order in which it happened."""
    notified: tuple[NotifiedIncident, ...]
    """Of these incidents, of the same runs, and of all runs lately."""
    settings: NotificationSettings


class OutboxStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, owner: str, now: float, until: float) -> Channel | None:
        """Lease a channel that has something to send, until a time; None where there is none that is free.

        On Postgres senders pass over what another is just claiming; on SQLite a transaction that writes is alone.
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
        """What a claimed channel waits to be told, and what it was told of the same runs, and of all lately."""
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
            .where(_waits_for(channel_id), outbox.c.not_before <= now + GATHER)  # with those that just came
            .order_by(outbox.c.id)
            .limit(MOST)
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
            return ChannelBacklog(
                waiting=waiting,
                notified=tuple(_to_notified(row) for row in known),
                settings=settings,
            )

    async def begin(self, channel_id: str, owner: str, ids: Sequence[int], until: float) -> bool:
        """Count an attempt and prolong the lease to cover it. False, with nothing counted, when the lease is lost."""
        async with self._database.write() as connection:
            if not await self._hold(connection, channel_id, owner, leased_until=until):
                return False
            await connection.execute(update(outbox).where(outbox.c.id.in_(ids)).values(attempts=outbox.c.attempts + 1))
            return True

    async def sent(
        self, channel_id: str, owner: str, ids: Sequence[int], known: Sequence[NotifiedIncident], now: float
    ) -> None:
        """These messages arrived as one; ``known`` is what the channel has been told of their incidents."""
        async with self._database.write() as connection:
            # The channel first, as everywhere, so that two transactions never wait for each other.
            await connection.execute(
                update(channels).where(channels.c.id == channel_id).values(last_sent_at=now, last_error=None)
            )
            await self._hold(connection, channel_id, owner, failures=0)
            await connection.execute(
                update(outbox).where(outbox.c.id.in_(ids)).values(state="sent", done_at=now, note=None)
            )
            dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
            for item in known:
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
        """These messages will not be sent; the note says why."""
        await self._end(ids, "skipped", note, now)

    async def give_up(self, ids: Sequence[int], note: str, now: float) -> None:
        """The other side will never take these messages, whatever it says to others."""
        await self._end(ids, "failed", note, now)

    async def hold_back(self, ids: Sequence[int], until: float) -> None:
        """These messages wait until a time."""
        async with self._database.write() as connection:
            await connection.execute(update(outbox).where(outbox.c.id.in_(ids)).values(not_before=until))

    async def retry_later(self, channel_id: str, owner: str, retry_at: float, error: str) -> None:
        """An attempt failed in passing: nobody tries this channel before a time."""
        async with self._database.write() as connection:
            await self._hold(
                connection, channel_id, owner, retry_at=retry_at, last_error=error, failures=channels.c.failures + 1
            )

    async def disable(self, channel_id: str, reason: str, now: float) -> None:
        """The other side will never take a message: what waits is given up, and people see the reason."""
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
        """The lease ends, if it is still held."""
        async with self._database.write() as connection:
            await self._hold(connection, channel_id, owner, leased_until=0.0, leased_by=None)

    async def of_alert(self, alert_id: str) -> list[answers.Notification]:
        """Who was, or is to be, told of an alert: one entry for each change and channel, in their order."""
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
            return [
                msgspec.convert(row, answers.Notification, from_attributes=True)
                for row in (await connection.execute(query)).mappings()
            ]

    async def next_due(self) -> float | None:
        """When there is something to do next, None where nothing waits."""
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
        """Remove messages that were done with before a time, and what was told so long ago."""
        async with self._database.write() as connection:
            await connection.execute(delete(outbox).where(outbox.c.done_at < before))
            await connection.execute(delete(told).where(told.c.told_at < before, told.c.closed.is_(True)))

    async def _hold(self, connection: AsyncConnection, channel_id: str, owner: str, **values: Any) -> bool:
        """Change a channel that is still leased to this owner."""
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
