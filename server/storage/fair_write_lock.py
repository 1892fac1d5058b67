"""Who writes next to a database that has one writer at a time: whoever is called by a `FairQueue`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from server.storage.fair_queue import FairQueue


class FairWriteLock:
    """Used from the event loop alone."""

    def __init__(self, at_once: int) -> None:
        """``at_once``: turns that run at the same time."""
        self._free = at_once
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    @property
    def is_contended(self) -> bool:
        """Somebody waits, so nobody should take much at once."""
        return len(self._waiting) > 0

    @contextlib.asynccontextmanager
    async def hold(self, name: str, cost: float) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Those of one name share by their ``cost``, that of the work in it."""
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(name, cost, called)
        if self._free > 0 and len(self._waiting) == 1:
            self._free -= 1
            self._call_next()
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():
                self._call_next()  # the turn came with the cancellation
            raise
        try:
            yield
        finally:
            self._call_next()

    def _call_next(self) -> None:
        while self._waiting:
            called, _ = self._waiting.pop()
            if not called.done():
                called.set_result(None)
                return
        self._free += 1
