"""Groups concurrent write requests into one transaction.

Most of the cost of a small transaction is the transaction itself: round trips to the driver and a flush of the disk.
While one transaction runs, further requests gather and share the next one. This module decides which requests share a
transaction; a store writes them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from server.errors import DatabaseBusyError, DatabaseError
from server.storage.fair_queue import FairQueue

Request = TypeVar("Request")
Result = TypeVar("Result")

GATHER = 0.025  # seconds between the starts of two transactions while several requests wait
MAX_SINGLE_WRITES = 8
"""Concurrent transactions of one request each, after a shared transaction has failed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting(Generic[Request, Result]):
    request: Request
    done: asyncio.Future[Result]


class GroupCommitter(Generic[Request, Result]):
    """Writes requests in groups of at most ``max_bytes``, one transaction at a time. Used from the event loop only.

    Owners alternate as `FairQueue` describes, so that a request of a quiet run joins the next transaction however many
    requests other runs have queued. The callers bound the queue: `write` returns when the request is written.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Request]], Awaitable[Sequence[Result | Exception]]],
        *,
        max_bytes: float,
        gather: float = GATHER,
        lock: asyncio.Lock | None = None,
    ) -> None:
        """``write`` writes a group in one transaction and returns one result per request, in order.

        A result that is an exception is raised to the caller that asked for it. If ``write`` itself raises, nothing of
        the group is written. Committers whose transactions lock the same rows share ``lock``, so that they never block
        each other inside the database.
        """
        self._write = write
        self._max_bytes = max_bytes
        self._gather = gather
        self._lock = lock if lock is not None else asyncio.Lock()
        self._queue: FairQueue[_Waiting[Request, Result]] = FairQueue()
        self._task: asyncio.Task[None] | None = None
        self._single_writes: set[asyncio.Task[None]] = set()
        self._single_write_slots = asyncio.Semaphore(MAX_SINGLE_WRITES)
        self._began = -gather
        self._last_size = 0

    @property
    def is_contended(self) -> bool:
        """Whether more bytes wait than the next transaction takes."""
        return self._queue.cost > self._max_bytes

    async def write(self, request: Request, owner: str, cost: float) -> Result:
        """Write a request of ``cost`` bytes and return its result. Raises the exception of its transaction."""
        waiting: _Waiting[Request, Result] = _Waiting(request=request, done=asyncio.get_running_loop().create_future())
        self._queue.put(owner, cost, waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await waiting.done

    async def stop(self) -> None:
        """Return when every request has been written or has failed."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])
        while self._single_writes:
            await asyncio.wait(self._single_writes)

    async def _work(self) -> None:
        """Write groups until the queue is empty."""
        while self._queue:
            if len(self._queue) > 1 or self._last_size > 1:
                # A single caller never waits; among many, requests that arrive a moment later share the transaction.
                await asyncio.sleep(max(0.0, self._began + self._gather - time.monotonic()))
            async with self._lock:
                self._began = time.monotonic()
                group = self._take()
                self._last_size = len(group)
                if group:
                    await self._write_group(group)

    def _take(self) -> list[_Waiting[Request, Result]]:
        group: list[_Waiting[Request, Result]] = []
        size = 0.0
        while self._queue and (not group or size < self._max_bytes):
            waiting, cost = self._queue.pop()
            if not waiting.done.done():  # else its caller was cancelled
                group.append(waiting)
                size += cost
        return group

    async def _write_group(self, group: Sequence[_Waiting[Request, Result]]) -> None:
        try:
            results = await self._write([waiting.request for waiting in group])
        except Exception as error:
            concerns_all = isinstance(error, DatabaseError) and not isinstance(error, DatabaseBusyError)
            if len(group) == 1 or concerns_all:
                for waiting in group:
                    _settle(waiting, error)
                return
            # A single request may have caused the failure or wait for a row lock: the others must not fail with it.
            for waiting in group:
                task = asyncio.create_task(self._write_single(waiting))
                self._single_writes.add(task)
                task.add_done_callback(self._single_writes.discard)
            return
        for waiting, result in zip(group, results, strict=True):
            _settle(waiting, result)

    async def _write_single(self, waiting: _Waiting[Request, Result]) -> None:
        async with self._single_write_slots:
            await self._write_group([waiting])


def _settle(waiting: _Waiting[Request, Result], result: Result | Exception) -> None:
    if waiting.done.done():
        return
    if isinstance(result, Exception):
        waiting.done.set_exception(result)
    else:
        waiting.done.set_result(result)
