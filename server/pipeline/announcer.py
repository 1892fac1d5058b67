"""Pushes run summaries to live subscribers, at most so many a second for each run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from server.broker import Broker, Message
from server.errors import DatabaseError
from server.storage.fleet import FleetQuery

logger = logging.getLogger(__name__)


class Announcer:
    """Used from the event loop alone."""

    def __init__(self, fleet: FleetQuery, broker: Broker, clock: Callable[[], float], per_second: float) -> None:
        self._fleet = fleet
        self._broker = broker
        self._clock = clock
        self._interval = 1.0 / per_second
        self._last: dict[str, float] = {}
        self._pending: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def mark(self, run_id: str) -> None:
        """The summary of the run has changed; it will be pushed soon."""
        if run_id in self._pending:
            return
        self._pending.add(run_id)
        task = asyncio.create_task(self._push(run_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _push(self, run_id: str) -> None:
        wait = self._last.get(run_id, float("-inf")) + self._interval - self._clock()
        if wait > 0:
            await asyncio.sleep(min(wait, self._interval))
        # Taken off before the summary is read: a change from here on is pushed again.
        self._pending.discard(run_id)
        self._last[run_id] = self._clock()
        try:
            summary = await self._fleet.summary(run_id)
        except DatabaseError as error:
            logger.warning(
                "the summary of run %s could not be pushed (%s)",
                run_id,
                error,
                extra={"action": "announce_failed", "run_id": run_id},
            )
            return
        if summary is not None:
            body = {"type": "run", "run": summary}
            await self._broker.publish(Message(run_id=run_id, project=summary["project"], body=body))
