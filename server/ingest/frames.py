"""The bounded queue between the task that reads a socket and the task that commits."""

from __future__ import annotations

import asyncio
from collections import deque


class FrameQueue:
    """Frames of one connection, for one producer and one consumer task.

    `put` waits while the queue is full, so that the socket is not read meanwhile and the client notices.
    """

    def __init__(self, capacity: int) -> None:
        """``capacity`` is the maximum number of frames."""
        self._capacity = capacity
        self._frames: deque[bytes] = deque()
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether no further frame is accepted."""
        return self._closed

    def __len__(self) -> int:
        return len(self._frames)

    async def put(self, frame: bytes) -> None:
        """Add a frame as soon as there is room. Frames that come after `close` are discarded."""
        while len(self._frames) >= self._capacity and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        if not self._closed:
            self._frames.append(frame)
            self._changed.set()

    def close(self) -> None:
        """Accept no further frame. Queued frames can still be taken."""
        self._closed = True
        self._changed.set()

    async def take(self, max_bytes: int) -> list[bytes]:
        """Wait for a frame, then return it with all that follow and fit into ``max_bytes``.

        A single frame may be larger. Returns an empty list when the queue is closed and empty.
        """
        while not self._frames and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        taken: list[bytes] = []
        size = 0
        while self._frames and (not taken or size + len(self._frames[0]) <= max_bytes):
            frame = self._frames.popleft()
            size += len(frame)
            taken.append(frame)
        self._changed.set()
        return taken
