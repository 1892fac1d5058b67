"""Notification channels, and the settings that apply to all of them: quiet hours, digests and silences.

The row of a channel also contains the lease of the dispatcher that sends to it; `storage.outbox` owns these columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.notification import Channel, Digest, NotificationSettings, QuietHours, Silence
from server.schema import channels, settings, silences
from server.storage.database import Database, insert_ignore

NOTIFICATIONS = "notifications"
"""Name of the row with the settings of all channels."""


class ChannelStore:
    """Stores channels and notification settings."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[Channel]:
        """Return every channel in the order that users gave them."""
        async with self._database.read() as connection:
            found = await connection.execute(select(channels).order_by(channels.c.position, channels.c.id))
            return [to_channel(row) for row in found]

    async def get(self, channel_id: str) -> Channel | None:
        """Return a channel, or None if there is none with this id."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(channels).where(channels.c.id == channel_id))).first()
            return None if row is None else to_channel(row)

    async def replace(self, wanted: Sequence[Channel]) -> None:
        """Replace all channels by these, in this order. The history of channels that remain is kept."""
        async with self._database.write() as connection:
            await connection.execute(delete(channels).where(channels.c.id.not_in([channel.id for channel in wanted])))
            for position, channel in enumerate(wanted):
                await self._put(connection, channel, position)

    async def put(self, channel: Channel) -> None:
        """Change a channel, or append it if it is new."""
        async with self._database.write() as connection:
            await self._put(connection, channel, None)

    async def add_once(self, channel: Channel) -> None:
        """Add a channel if there is none with its id."""
        async with self._database.write() as connection:
            await connection.execute(
                insert_ignore(connection, channels).values(
                    id=channel.id, position=0, created_at=channel.created_at, **_columns(channel)
                )
            )

    async def delete(self, channel_id: str) -> bool:
        """Delete a channel together with its waiting notifications. Returns False if there is no such channel."""
        async with self._database.write() as connection:
            return (await connection.execute(delete(channels).where(channels.c.id == channel_id))).rowcount == 1

    async def settings(self) -> NotificationSettings:
        """Return the settings with all silences."""
        async with self._database.read() as connection:
            return await read_settings(connection, None)

    async def save_settings(self, wanted: NotificationSettings) -> None:
        """Replace the settings and the silences."""
        value = {
            "quiet_hours": None if wanted.quiet_hours is None else asdict(wanted.quiet_hours),
            "digest": asdict(wanted.digest),
            "cooldown_seconds": wanted.cooldown_seconds,
        }
        async with self._database.write() as connection:
            await connection.execute(insert_ignore(connection, settings).values(name=NOTIFICATIONS, value=value))
            await connection.execute(update(settings).where(settings.c.name == NOTIFICATIONS).values(value=value))
            await connection.execute(delete(silences))
            if wanted.silences:
                await connection.execute(silences.insert(), [asdict(silence) for silence in wanted.silences])

    async def _put(self, connection: AsyncConnection, channel: Channel, position: int | None) -> None:
        """Store a channel. Saving it resets its failures and its retry time."""
        values = {
            **_columns(channel),
            "failures": 0,
            "retry_at": 0.0,
            "last_error": None,
            **({} if position is None else {"position": position}),
        }
        changed = await connection.execute(update(channels).where(channels.c.id == channel.id).values(**values))
        if changed.rowcount == 0:
            if position is None:
                last = select(channels.c.position).order_by(channels.c.position.desc()).limit(1)
                values["position"] = 1 + ((await connection.execute(last)).scalar() or 0)
            await connection.execute(channels.insert().values(id=channel.id, created_at=channel.created_at, **values))


async def read_settings(connection: AsyncConnection, now: float | None) -> NotificationSettings:
    """Return the settings with the silences that hold at ``now``, or with all silences where ``now`` is None."""
    value = (await connection.execute(select(settings.c.value).where(settings.c.name == NOTIFICATIONS))).scalar()
    query = select(silences).order_by(silences.c.until, silences.c.id)
    if now is not None:
        query = query.where(silences.c.until > now)
    held = tuple(Silence(**row._mapping) for row in await connection.execute(query))
    if value is None:
        return NotificationSettings(silences=held)
    return NotificationSettings(
        quiet_hours=None if value["quiet_hours"] is None else QuietHours(**value["quiet_hours"]),
        digest=Digest(**value["digest"]),
        cooldown_seconds=value["cooldown_seconds"],
        silences=held,
    )


def to_channel(row: Row[Any]) -> Channel:
    """Return the channel of a database row."""
    return Channel(
        id=row.id,
        name=row.name,
        kind=row.kind,
        target=row.target,
        encrypted_secrets=row.sealed,
        project=row.project,
        min_level=row.min_level,
        kinds=None if row.kinds is None else tuple(row.kinds),
        enabled=row.enabled,
        disabled_reason=row.disabled_reason,
        settings=row.settings,
        created_at=row.created_at,
        last_sent_at=row.last_sent_at,
        last_error=row.last_error,
        failures=row.failures,
    )


def _columns(channel: Channel) -> dict[str, Any]:
    """Return the columns that users control."""
    return {
        "name": channel.name,
        "kind": channel.kind,
        "sealed": channel.encrypted_secrets,
        "target": channel.target,
        "project": channel.project,
        "min_level": channel.min_level,
        "kinds": None if channel.kinds is None else list(channel.kinds),
        "enabled": channel.enabled,
        "disabled_reason": channel.disabled_reason,
        "settings": dict(channel.settings),
    }
