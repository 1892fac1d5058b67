"""The queue of one subscriber: bounded, and never waited for.

When it is full the oldest message is dropped and the subscriber is told to read anew, so that a slow one never slows
anybody else.
"""

from __future__ import annotations

import asyncio
from collections import deque

from server.broker.live_message import RESYNC, Delivery, Interest, control_delivery


class Subscription:
    """Used from the event loop alone."""

    def __init__(self, capacity: int, interest: Interest) -> None:
        self.interest = interest
        self.cursor = ""
        """Where it began: after this everything comes. Set once by the broker, before anybody else sees it."""
        self.is_resumed = False
        """Whether it goes on at the cursor that was asked for, with nothing missed in between."""
        self._queue: deque[Delivery] = deque()
        self._capacity = capacity
        self._arrived = asyncio.Event()
        self._dropped: Delivery | None = None

    def offer(self, delivery: Delivery) -> None:
        """Add a delivery; never waits."""
        if len(self._queue) >= self._capacity:
            self._dropped = self._queue.popleft()
        self._queue.append(delivery)
        self._arrived.set()

    async def get(self) -> Delivery:
        """The next delivery."""
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        if self._dropped is not None:
            resync = control_delivery(RESYNC, self._dropped.cursor)
            self._dropped = None
            return resync
        return self._queue.popleft()
