"""What works behind the requests, and the order in which it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass

from server.assembly.notifications import Notifications
from server.auth.admissions import Admissions
from server.broker import Broker
from server.pipeline.deletion import Deleter
from server.pipeline.pipeline import Pipeline
from server.storage.database import Database
from server.storage.measurements.compaction import Compactor

AGAIN = 2.0  # seconds


async def end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel them until they have ended.

    Once is not always enough: before Python 3.12 `asyncio.wait_for` loses a cancellation that comes at the moment at
    which what it waits for is there, and asyncpg's `executemany` waits by it for its socket, again and again while a
    compaction writes tiles. Such a compaction went on for ever, and with it the server.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN)


@dataclass(frozen=True, kw_only=True)
class Background:
    database: Database
    broker: Broker
    notifications: Notifications
    pipeline: Pipeline
    compactor: Compactor
    admissions: Admissions
    deleter: Deleter

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """At the end everything is stopped, each before what it writes to, and the database is closed."""
        await self.broker.start()
        await self.notifications.start()
        await self.pipeline.start()
        tasks = [asyncio.create_task(self.compactor.run()), asyncio.create_task(self.admissions.watch())]
        self.deleter.start()
        try:
            yield
        finally:
            await self.deleter.stop()
            await end(tasks)
            await self.pipeline.stop()
            await self.notifications.stop()
            await self.broker.stop()
            await self.database.close()
