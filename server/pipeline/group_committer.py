"""One transaction for what many want to write at about the same time.

Most of what a small transaction costs is the transaction: statements, their ways to the driver and back, a flush of
the disk. While one runs, what others want written gathers, and goes with the next. Owns who goes with which; what is
written is the business of a store.
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

GATHER = 0.025  # seconds between the beginnings of two transactions while several have something to write
ALONE_AT_ONCE = 8  # transactions of one request each, after one of many has failed


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting(Generic[Request, Result]):
    request: Request
    done: asyncio.Future[Result]


class GroupCommitter(Generic[Request, Result]):
    """Used from the event loop alone. One transaction at a time, at most ``most`` bytes in each.

    Names take turns as a `FairQueue` has it, so that what a calm run sends goes with the next transaction, whatever
    others have piled up. Bounded by whoever calls `write`: it returns when the request is written.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Request]], Awaitable[Sequence[Result | Exception]]],
        *,
        most: float,
        gather: float = GATHER,
        turn: asyncio.Lock | None = None,
    ) -> None:
        """``write``: all of these in one transaction, and of each what came of it; an exception is raised to whoever
        asked for that one. If it raises, nothing is written. ``turn``: of those whose transactions lock the same rows,
        so that they never wait for each other in the database."""
        self._write = write
        self._most = most
        self._gather = gather
        self._turn = turn if turn is not None else asyncio.Lock()
        self._queue: FairQueue[_Waiting[Request, Result]] = FairQueue()
        self._task: asyncio.Task[None] | None = None
        self._alone: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(ALONE_AT_ONCE)
        self._began = -gather
        self._last_size = 0

    @property
    def is_contended(self) -> bool:
        """More waits than the next transaction takes."""
        return self._queue.cost > self._most

    async def write(self, request: Request, whose: str, cost: float) -> Result:
        """Returns when it is written. ``cost``: in bytes. Raises what `write` of the construction does."""
        waiting: _Waiting[Request, Result] = _Waiting(request=request, done=asyncio.get_running_loop().create_future())
        self._queue.put(whose, cost, waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await waiting.done

    async def stop(self) -> None:
        """Let what was asked for be written."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])
        while self._alone:
            await asyncio.wait(self._alone)

    async def _work(self) -> None:
        """Until nothing waits."""
        while self._queue:
            if len(self._queue) > 1 or self._last_size > 1:
                # Nobody who is alone waits; of many, those that come a moment later share the transaction.
                await asyncio.sleep(max(0.0, self._began + self._gather - time.monotonic()))
            async with self._turn:
                self._began = time.monotonic()
                group = self._take()
                self._last_size = len(group)
                if group:
                    await self._write_group(group)

    def _take(self) -> list[_Waiting[Request, Result]]:
        group: list[_Waiting[Request, Result]] = []
        size = 0.0
        while self._queue and (not group or size < self._most):
            waiting, cost = self._queue.pop()
            if not waiting.done.done():  # whoever wanted it has gone meanwhile
                group.append(waiting)
                size += cost
        return group

    async def _write_group(self, group: Sequence[_Waiting[Request, Result]]) -> None:
        try:
            results = await self._write([waiting.request for waiting in group])
        except Exception as error:
            is_everybodys = isinstance(error, DatabaseError) and not isinstance(error, DatabaseBusyError)
            if len(group) == 1 or is_everybodys:
                for waiting in group:
                    _settle(waiting, error)
                return
            # One of them may be to blame, or be waiting for a row: the others shall not pay for it.
            for waiting in group:
                task = asyncio.create_task(self._write_alone(waiting))
                self._alone.add(task)
                task.add_done_callback(self._alone.discard)
            return
        for waiting, result in zip(group, results, strict=True):
            _settle(waiting, result)

    async def _write_alone(self, waiting: _Waiting[Request, Result]) -> None:
        async with self._gate:
            await self._write_group([waiting])


def _settle(waiting: _Waiting[Request, Result], result: Result | Exception) -> None:
    if waiting.done.done():
        return
    if isinstance(result, Exception):
        waiting.done.set_exception(result)
    else:
        waiting.done.set_result(result)
