"""Keeps the states of the runs: writers that finish, runs that fall silent, and alert rules about missing data."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from client_sdk.protocol import Finish
from server.errors import DatabaseError, IngestError, RunDeletedError, WriterTakenError
from server.log_actions import LogAction
from server.models import RunState
from server.pipeline.followers import Followers
from server.pipeline.publisher import Publisher
from server.pipeline.rule_keeper import RuleKeeper
from server.pipeline.writer_registry import WriterRegistry
from server.pipeline.writer_session import WriterSession, taken
from server.storage.runs import RunStore

logger = logging.getLogger(__name__)


class RunStateKeeper:
    """Changes run states on behalf of writers, and by the clock in a background task. Used from the event loop only."""

    def __init__(
        self,
        *,
        runs: RunStore,
        writers: WriterRegistry,
        followers: Followers,
        publisher: Publisher,
        rules: RuleKeeper,
        clock: Callable[[], float],
        stale_after: float,
        heartbeat_every: float,
    ) -> None:
        """A run without a connected writer becomes stale ``stale_after`` seconds after it was last active.

        Connected writers, stale runs and alert rules are examined every ``heartbeat_every`` seconds.
        """
        self._runs = runs
        self._writers = writers
        self._followers = followers
        self._publisher = publisher
        self._rules = rules
        self._clock = clock
        self._stale_after = stale_after
        self._heartbeat_every = heartbeat_every
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the background task."""
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Stop the background task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def finish(self, session: WriterSession, message: Finish) -> None:
        """End the run of a writer. Raises `IngestError` if records before the end are missing, and `DatabaseError`."""
        if message.last_seq > session.last_seq:
            raise IngestError(
                "sequence_gap",
                f"finish names record {message.last_seq}, but {session.last_seq} is the last one received; "
                "send the rest first",
                retryable=True,
            )
        known = session.registration
        try:
            await self._runs.finish_writer(
                known.run_id, known.writer_id, RunState(message.state), self._clock(), epoch=known.epoch
            )
        except WriterTakenError as error:
            raise taken() from error
        except RunDeletedError as error:
            raise IngestError("run_deleted", str(error)) from error
        self._writers.disconnect(session)
        self._publisher.summary_changed(known.run_id)
        self._followers.follow(known.run_id, rank=known.rank)

    async def refresh_rules(self) -> None:
        """Read the alert rules again and apply them to every run that is followed here. Raises `DatabaseError`."""
        if await self._rules.refresh():
            self._followers.look(self._rules.since)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_every)
            try:
                await self._beat()
            except Exception as error:  # the next heartbeat must come, whatever this one failed on
                expected = isinstance(error, DatabaseError)
                logger.log(
                    logging.WARNING if expected else logging.ERROR,
                    "cannot update the states of the runs: %s",
                    error,
                    exc_info=None if expected else error,
                    extra={"action": LogAction.HEARTBEAT_FAILED},
                )
            self._followers.forget_ended()

    async def _beat(self) -> None:
        now = self._clock()
        await self._runs.heartbeat(self._writers.connected_writers, now)
        for run_id in await self._runs.mark_stale(now - self._stale_after):
            self._publisher.summary_changed(run_id)
        await self.refresh_rules()
        await self._followers.refresh_losses()
        for run_id in await self._rules.look():
            follower = self._followers.follow(run_id)
            if follower is not None:
                follower.look(self._rules.since)
