"""A dispatcher that runs in a test, and the waits for what it has stored."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from sqlalchemy import select

from server.notification import Channel
from server.notifications.dispatcher import Dispatcher
from server.notifications.picture import Panel, draw
from server.schema import outbox
from server.storage.channels import ChannelStore
from server.storage.database import Database
from server.storage.outbox import OutboxStore
from tests.support.alerting import messenger

PICTURE = draw([Panel(title="loss", points=[(1.0, 1.0), (2.0, 2.0)], logarithmic=True)], 2, None)


async def render_picture(run_id: str, step: int, predicted: tuple[int, int, int] | None) -> bytes:
    assert (run_id, step, predicted) == ("run", 627, (698, 712, 731))
    return PICTURE


class WatchedOutbox(OutboxStore):
    """An outbox that announces every change that it has stored."""

    changed: asyncio.Condition
    """Condition of the running test, notified after each change."""

    @classmethod
    async def announce(cls) -> None:
        async with cls.changed:
            cls.changed.notify_all()

    async def sent(self, *args: Any) -> None:
        await super().sent(*args)
        await self.announce()

    async def skip(self, *args: Any) -> None:
        await super().skip(*args)
        await self.announce()

    async def hold_back(self, *args: Any) -> None:
        await super().hold_back(*args)
        await self.announce()

    async def give_up(self, *args: Any) -> None:
        await super().give_up(*args)
        await self.announce()

    async def disable(self, *args: Any) -> None:
        await super().disable(*args)
        await self.announce()

    async def retry_later(self, *args: Any) -> None:
        await super().retry_later(*args)
        await self.announce()


@contextlib.asynccontextmanager
async def sending(
    database: Database,
    api_url: str = "http://127.0.0.1:1/",
    *,
    clock: Callable[[], float] = time.time,
    patience: float = 5.0,
    quick: bool = True,
) -> AsyncIterator[Dispatcher]:
    """Run a dispatcher. With ``quick`` it retries without a wait."""
    wire = messenger(api_url, timeout=patience)
    wait = (lambda low, _: 0.0) if quick else (lambda low, _: low)
    dispatcher = Dispatcher(WatchedOutbox(database), wire, render_picture, clock, poll=0.05, uniform=wait)
    dispatcher.start()
    try:
        yield dispatcher
    finally:
        await dispatcher.stop()
        await wire.close()


async def settle(database: Database) -> dict[str, list[str]]:
    """Wait until no row is pending, and return the notes or else the changes of the rows by their final state."""
    rows: list[Any] = []

    async def is_settled() -> bool:
        async with database.read() as connection:
            rows[:] = (await connection.execute(select(outbox).order_by(outbox.c.id))).all()
        return bool(rows) and all(row.state != "pending" for row in rows)

    await changes_until(is_settled)
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.state, []).append(row.change if row.note is None else row.note)
    return found


async def changes_until(is_reached: Callable[[], Awaitable[bool]]) -> None:
    """Wait for changes of the outbox until a condition holds."""
    async with asyncio.timeout(20), WatchedOutbox.changed:
        while not await is_reached():
            await WatchedOutbox.changed.wait()


async def the_channel(database: Database) -> Channel:
    [found] = await ChannelStore(database).all()
    return found


async def failed(database: Database) -> Channel:
    """Wait until a delivery attempt has failed, and return the channel."""

    async def has_failed() -> bool:
        return (await the_channel(database)).failures > 0

    await changes_until(has_failed)
    return await the_channel(database)
