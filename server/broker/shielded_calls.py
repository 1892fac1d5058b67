"""Calls that a task can stop waiting for without ending them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any


class ShieldedCalls:
    """Awaits calls such that the waiting can be cancelled.

    The call itself runs on in the background: a cancelled save is still published, and the Redis client swallows a
    cancellation that arrives while it connects.
    """

    def __init__(self) -> None:
        self._pending: set[asyncio.Future[Any]] = set()

    async def call(self, awaitable: Awaitable[Any]) -> Any:
        """Return the result of a call, and raise what it raises."""
        call = asyncio.ensure_future(awaitable)
        self._pending.add(call)
        call.add_done_callback(self._forget)
        return await asyncio.shield(call)

    async def wait_done(self) -> None:
        """Wait until every call has ended."""
        await asyncio.gather(*self._pending, return_exceptions=True)

    def _forget(self, call: asyncio.Future[Any]) -> None:
        self._pending.discard(call)
        if not call.cancelled():
            call.exception()  # Retrieving the exception keeps asyncio from reporting it as never retrieved.
