"""Queue of one subscriber: bounded, and never waited for.

When the queue is full, the oldest delivery is dropped and the subscriber is asked to read everything again, so that a
slow subscriber delays nobody else.
"""

from __future__ import annotations

import asyncio
from collections import deque

from server.broker.live_message import RESYNC, Delivery, Interest, control_delivery


class Subscription:
    """Deliveries that wait for one subscriber. Use it from the event loop alone."""

    def __init__(self, capacity: int, interest: Interest) -> None:
        self.interest = interest
        self.cursor = ""
        """Cursor at which the subscription begins. The broker sets it once, before it hands the subscription out."""
        self.is_resumed = False
        """Whether the subscription continues at the requested cursor without missing messages."""
        self._queue: deque[Delivery] = deque()
        self._capacity = capacity
        self._arrived = asyncio.Event()
        self._dropped: Delivery | None = None

    @property
    def queued(self) -> int:
        """Number of deliveries that wait for the subscriber."""
        return len(self._queue)

    def offer(self, delivery: Delivery) -> None:
        """Add a delivery without waiting."""
        if len(self._queue) >= self._capacity:
            self._dropped = self._queue.popleft()
        self._queue.append(delivery)
        self._arrived.set()

    async def get(self) -> Delivery:
        """Wait for the next delivery and return it."""
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        if self._dropped is not None:
            resync = control_delivery(RESYNC, self._dropped.cursor)
            self._dropped = None
            return resync
        return self._queue.popleft()
