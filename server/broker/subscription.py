"""Queue of one subscriber: bounded, and never waited for.

When the queue is full, the oldest message is dropped and the subscriber is asked to read everything again, so that a
slow subscriber delays nobody else.
"""

from __future__ import annotations

import asyncio
from collections import deque

from server.broker.live_message import RESYNC, Interest, QueuedMessage, control_message


class Subscription:
    """Messages that wait for one subscriber. Use it from the event loop alone."""

    def __init__(self, capacity: int, interest: Interest) -> None:
        self.interest = interest
        self.cursor = ""
        """Cursor at which the subscription begins. The broker sets it once, before it hands the subscription out."""
        self.is_resumed = False
        """Whether the subscription continues at the requested cursor without missing messages."""
        self._queue: deque[QueuedMessage] = deque()
        self._capacity = capacity
        self._arrived = asyncio.Event()
        self._dropped: QueuedMessage | None = None

    @property
    def queued(self) -> int:
        """Number of messages that wait for the subscriber."""
        return len(self._queue)

    def offer(self, queued: QueuedMessage) -> None:
        """Add a message without waiting."""
        if len(self._queue) >= self._capacity:
            self._dropped = self._queue.popleft()
        self._queue.append(queued)
        self._arrived.set()

    async def get(self) -> QueuedMessage:
        """Wait for the next message and return it."""
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        if self._dropped is not None:
            resync = control_message(RESYNC, self._dropped.cursor)
            self._dropped = None
            return resync
        return self._queue.popleft()
