"""Deletes runs in the background: those that users delete, and those that exceed the retention period."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from server.errors import DatabaseError
from server.log_actions import LogAction
from server.storage.deletion import DeletionStore

logger = logging.getLogger(__name__)

DAY = 86_400.0  # seconds
RETRY_AFTER = 60.0  # seconds


class Deleter:
    """Hides deleted runs at once and removes their data in a background task."""

    def __init__(
        self,
        store: DeletionStore,
        *,
        forget: Callable[[str], None],
        announce: Callable[[str, str], None] = lambda run_id, project: None,
        clock: Callable[[], float],
        retention_days: float,
        look_every: float,
    ) -> None:
        """``forget`` is called with the id of each run as soon as it is marked for deletion, and ``announce`` after it
        with the id and the project.

        A run that has been inactive for ``retention_days`` is deleted; 0 keeps every run. The deleter searches for such
        runs every ``look_every`` seconds.
        """
        self._store = store
        self._forget = forget
        self._announce = announce
        self._clock = clock
        self._retention_days = retention_days
        self._look_every = look_every
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the background task, which first completes the deletions that an earlier process left unfinished."""
        self._wanted.set()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop the background task. Marked runs stay hidden and are removed after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def delete(self, run_id: str) -> bool:
        """Hide a run now and schedule the removal of its data. Return False if there is no such run."""
        project = await self._store.mark(run_id)
        if project is None:
            return False
        self._forget(run_id)
        self._announce(run_id, project)
        self._wanted.set()
        return True

    async def delete_expired(self) -> int:
        """Mark the runs that exceed the retention period for deletion and return their number."""
        if self._retention_days <= 0:
            return 0
        expired = await self._store.expired(self._clock() - DAY * self._retention_days)
        for run_id in expired:
            await self.delete(run_id)
            logger.info(
                "run %s exceeds the retention period and is being deleted",
                run_id,
                extra={"action": LogAction.RUN_EXPIRED, "run_id": run_id},
            )
        return len(expired)

    async def purge(self) -> None:
        """Remove all data of the marked runs and return the space to the database."""
        marked = await self._store.marked()
        for run_id in marked:
            self._forget(run_id)
            while await self._store.purge_some(run_id):
                pass
            logger.info("run %s has been deleted", run_id, extra={"action": LogAction.RUN_DELETED, "run_id": run_id})
        if marked:
            await self._store.vacuum()
        while await self._store.shrink_some():
            pass

    async def _run(self) -> None:
        while True:
            wait = self._look_every
            try:
                await self.delete_expired()
                self._wanted.clear()
                await self.purge()
            except DatabaseError as error:
                logger.warning("deletions are delayed: %s", error, extra={"action": LogAction.DELETION_WAITS})
                wait = min(wait, RETRY_AFTER)
            except Exception:  # a run that cannot be deleted must not keep the others from being deleted
                logger.exception("cannot delete runs", extra={"action": LogAction.DELETION_FAILED})
            try:
                async with asyncio.timeout(wait):
                    await self._wanted.wait()
            except TimeoutError:
                continue
