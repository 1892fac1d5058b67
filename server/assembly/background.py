"""The background tasks of a server, and the order in which they start and stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass

from server.agents.endpoint import AgentEndpoint
from server.assembly.notifications import Notifications
from server.auth.admissions import Admissions
from server.broker import Broker
from server.pipeline.deletion import Deleter
from server.pipeline.pipeline import Pipeline
from server.storage.database import Database
from server.storage.measurements.compaction import Compactor

CANCEL_EVERY = 2.0  # seconds between two cancellations of a task that has not ended


async def end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks repeatedly until all of them have ended.

    A single cancellation may get lost: before Python 3.12, `asyncio.wait_for` swallows a cancellation that arrives at
    the moment at which its awaitable completes, and asyncpg's `executemany` calls it again and again while a compaction
    writes tiles. Such a compaction never ended, and neither did the server.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_EVERY)


@dataclass(frozen=True, kw_only=True)
class Background:
    """Parts of a server that work independently of requests."""

    database: Database
    broker: Broker
    notifications: Notifications
    pipeline: Pipeline
    compactor: Compactor
    admissions: Admissions
    agents: AgentEndpoint
    deleter: Deleter

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start all parts; on exit stop each before the parts that it writes to, and close the database."""
        await self.broker.start()
        await self.notifications.start()
        await self.pipeline.start()
        work = (self.compactor.run(), self.admissions.watch(), self.agents.run())
        tasks = [asyncio.create_task(part) for part in work]
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
