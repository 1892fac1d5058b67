"""Publish and subscribe: from the pipeline to open dashboards and training processes. Liveness alone.

Every subscriber has a bounded queue. When it is full the oldest message is dropped and the subscriber is told to read
anew (`RESYNC`), so that a slow one never slows anybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Message:
    """Something about a run; ``body`` is JSON as the live socket sends it, with its ``type``."""

    run_id: str
    project: str
    body: Mapping[str, Any]


class Subscription:
    """The queue of one subscriber. Used from the event loop alone."""

    def __init__(self, capacity: int) -> None:
        self._queue: deque[Message] = deque()
        self._capacity = capacity
        self._arrived = asyncio.Event()
        self._lost = False

    def offer(self, message: Message) -> None:
        """Add a message; never waits."""
        if len(self._queue) >= self._capacity:
            self._queue.popleft()
            self._lost = True
        self._queue.append(message)
        self._arrived.set()

    async def get(self) -> Message | None:
        """The next message. None: some were dropped before it, read anew."""
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        if self._lost:
            self._lost = False
            return None
        return self._queue.popleft()


class Broker(Protocol):
    async def publish(self, message: Message) -> None:
        """Hand a message to everybody who subscribes to its run. Never waits for a subscriber."""
        ...

    def subscribe(
        self, *, run_ids: frozenset[str] | None, project: str | None
    ) -> contextlib.AbstractAsyncContextManager[Subscription]:
        """Messages of these runs (None: of all), within one project (None: of all)."""
        ...


class MemoryBroker:
    """Within one process."""

    def __init__(self, capacity: int) -> None:
        """``capacity``: messages held per subscriber."""
        self._capacity = capacity
        self._subscribers: dict[Subscription, tuple[frozenset[str] | None, str | None]] = {}

    async def publish(self, message: Message) -> None:
        for subscription, (run_ids, project) in self._subscribers.items():
            if (run_ids is None or message.run_id in run_ids) and (project is None or message.project == project):
                subscription.offer(message)

    @contextlib.asynccontextmanager
    async def subscribe(self, *, run_ids: frozenset[str] | None, project: str | None) -> AsyncIterator[Subscription]:
        subscription = Subscription(self._capacity)
        self._subscribers[subscription] = (run_ids, project)
        try:
            yield subscription
        finally:
            del self._subscribers[subscription]
