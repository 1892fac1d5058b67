"""Frames between the task that reads a socket and the task that commits."""

from __future__ import annotations

import asyncio
from collections import deque


class FrameQueue:
    """Bounded by the number of frames: `put` waits while it is full, so that the socket is not read meanwhile.

    One task puts, one takes.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._frames: deque[bytes] = deque()
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def closed(self) -> bool:
        return self._closed

    def __len__(self) -> int:
        return len(self._frames)

    async def put(self, frame: bytes) -> None:
        while len(self._frames) >= self._capacity and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        if not self._closed:
            self._frames.append(frame)
            self._changed.set()

    def close(self) -> None:
        """Nothing more will come; what is queued can still be taken."""
        self._closed = True
        self._changed.set()

    async def take(self, most_bytes: int) -> list[bytes]:
        """All frames that have gathered: one or as many as ``most_bytes`` hold; none when the queue has ended."""
        while not self._frames and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        taken: list[bytes] = []
        size = 0
        while self._frames and (not taken or size + len(self._frames[0]) <= most_bytes):
            frame = self._frames.popleft()
            size += len(frame)
            taken.append(frame)
        self._changed.set()
        return taken
