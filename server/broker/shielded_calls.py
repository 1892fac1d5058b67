"""Waiting for answers of Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any


class ShieldedCalls:
    """Waits so that the waiting can be broken off: the client of Redis swallows a cancellation while it connects."""

    def __init__(self) -> None:
        self._asked: set[asyncio.Future[Any]] = set()

    async def call(self, question: Awaitable[Any]) -> Any:
        answer = asyncio.ensure_future(question)
        self._asked.add(answer)
        answer.add_done_callback(self._forget)
        return await asyncio.shield(answer)

    async def wait_closed(self) -> None:
        """Until every question is answered, or given up on by the client."""
        await asyncio.gather(*self._asked, return_exceptions=True)

    def _forget(self, answer: asyncio.Future[Any]) -> None:
        self._asked.discard(answer)
        if not answer.cancelled():
            answer.exception()  # it is not an error that nobody waits any more
