"""Who writes next: runs take turns, so that one that floods the server does not keep the others waiting.

Start-time fair queueing (Goyal et al. 1996): every piece of work begins, in virtual time, when the one before it of the
same run would have ended, and not before now; of those that wait, the one that begins first gets the next turn. A run
that sends little is always ahead of one that has a backlog, and backlogs share evenly, byte by byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator


class Turns:
    """Used from the event loop alone."""

    def __init__(self, at_once: int) -> None:
        """``at_once``: turns that run at the same time."""
        self._free = at_once
        self._now = 0.0  # virtual time: bytes
        self._ends: dict[str, float] = {}
        """Of the last piece of each run whose end is not past."""
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    @property
    def is_contended(self) -> bool:
        """Somebody waits, so nobody should take much at once."""
        return bool(self._waiting)

    @contextlib.asynccontextmanager
    async def turn(self, run_id: str, cost: float) -> AsyncIterator[None]:
        """Wait for a turn of this run and hold it. ``cost``: of the work in it, for example bytes."""
        begin = max(self._now, self._ends.get(run_id, 0.0))
        self._ends[run_id] = begin + cost
        if self._free > 0 and not self._waiting:
            self._free -= 1
            self._advance(begin)
        else:
            await self._wait(begin)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, begin: float) -> None:
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._waiting, (begin, self._count, called))
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():
                self._pass_on()  # the turn came with the cancellation
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            begin, _, called = heapq.heappop(self._waiting)
            if not called.done():
                self._advance(begin)
                called.set_result(None)
                return
        self._free += 1

    def _advance(self, begin: float) -> None:
        self._now = max(self._now, begin)
        if len(self._ends) > 1_000:
            self._ends = {run_id: end for run_id, end in self._ends.items() if end > self._now}
