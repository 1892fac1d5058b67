"""Pushes run summaries to live subscribers, at most so many a second for each run."""

from __future__ import annotations

import asyncio
import logging

from server.broker import Broker, LiveMessage
from server.errors import DatabaseError
from server.storage.fleet import FleetQuery

logger = logging.getLogger(__name__)

RUNS_AT_ONCE = 200


class Announcer:
    """Used from the event loop alone. One task for all runs: what has changed since its last round is read together, so
    that hundreds of busy runs cost a few queries a second, and leave the connections of the database to commits."""

    def __init__(self, fleet: FleetQuery, broker: Broker, per_second: float) -> None:
        """``per_second``: rounds at most, and so summaries of one run."""
        self._fleet = fleet
        self._broker = broker
        self._interval = 1.0 / per_second
        self._pending: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None

    def mark(self, run_id: str) -> None:
        """The summary of the run has changed; it will be pushed soon."""
        self._pending[run_id] = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._push())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _push(self) -> None:
        """Until nothing has changed for one round."""
        while self._pending:
            # Taken off before the summaries are read: a change from here on is pushed again.
            some = list(self._pending)[:RUNS_AT_ONCE]
            for run_id in some:
                del self._pending[run_id]
            try:
                for summary in await self._fleet.summaries(some):
                    body = {"type": "run", "run": summary}
                    await self._broker.publish(LiveMessage(run_id=summary["id"], project=summary["project"], body=body))
            except DatabaseError as error:
                logger.warning(
                    "the summaries of %d runs could not be pushed (%s)",
                    len(some),
                    error,
                    extra={"action": "announce_failed"},
                )
            await asyncio.sleep(self._interval)
