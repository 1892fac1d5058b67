"""Pushes run summaries to live subscribers at a bounded rate."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from client_sdk import answers
from server.broker import Broker, LiveMessage
from server.errors import DatabaseError
from server.log_actions import LogAction
from server.storage.fleet import FleetQuery

logger = logging.getLogger(__name__)

SUMMARIES_PER_ROUND = 200


class Announcer:
    """Publishes the summaries of runs that have changed. Used from the event loop only.

    One task serves all runs and reads the summaries of a round together, so that hundreds of busy runs cost a few
    queries per second and leave the database connections to commits.
    """

    def __init__(self, fleet: FleetQuery, broker: Broker, rounds_per_second: float) -> None:
        """``rounds_per_second`` bounds the summaries that are published per second for each run."""
        self._fleet = fleet
        self._broker = broker
        self._interval = 1.0 / rounds_per_second
        self._pending: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None

    def mark(self, run_id: str) -> None:
        """Note that the summary of a run has changed, so that the next round publishes it."""
        self._pending[run_id] = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._push())

    async def stop(self) -> None:
        """Stop publishing. Summaries that are still pending are dropped: a viewer reads them when it connects."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _push(self) -> None:
        """Publish rounds of summaries until no run has changed during a round."""
        while self._pending:
            # The marks are removed before the summaries are read, so a later change is published again.
            marked = list(self._pending)[:SUMMARIES_PER_ROUND]
            for run_id in marked:
                del self._pending[run_id]
            try:
                for summary in await self._fleet.summaries(marked):
                    body = msgspec.to_builtins(answers.LiveFrame(type="run", run=summary))
                    await self._broker.publish(LiveMessage(run_id=summary.id, project=summary.project, body=body))
            except DatabaseError as error:
                logger.warning(
                    "cannot publish the summaries of %d runs: %s",
                    len(marked),
                    error,
                    extra={"action": LogAction.ANNOUNCE_FAILED},
                )
            await asyncio.sleep(self._interval)
