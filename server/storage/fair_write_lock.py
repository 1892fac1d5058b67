"""Lock for a database that allows one writer at a time. A `FairQueue` determines who gets it next."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from server.storage.fair_queue import FairQueue


class FairWriteLock:
    """Lock that is granted in fair order. Use it from the event loop alone."""

    def __init__(self, at_once: int) -> None:
        """Create a lock that at most ``at_once`` holders have at the same time."""
        self._free = at_once
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    @property
    def is_contended(self) -> bool:
        """Whether anybody waits for the lock, so that holders should keep it only briefly."""
        return len(self._waiting) > 0

    @contextlib.asynccontextmanager
    async def hold(self, name: str, cost: float) -> AsyncIterator[None]:
        """Acquire the lock for the block. Holders of the same name share it in proportion to the ``cost`` of their
        work.
        """
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(name, cost, called)
        if self._free > 0 and len(self._waiting) == 1:
            self._free -= 1
            self._call_next()
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():
                self._call_next()  # The lock was granted at the moment of the cancellation.
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
