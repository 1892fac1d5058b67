"""How much may be under way to the server without an acknowledgement: little on a slow link.

A ping waits behind all that was sent before it. What a fast link carries in a moment are minutes of a slow one: the
connection would be taken for dead, and again and again the next one, each of which sends once more what is still on its
way. So the window begins small, grows while acknowledgements are prompt, and shrinks when a connection ends without.

Pure; sending is the sender's. Used by one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

BATCHES: Final = 8  # sent and not yet acknowledged
LARGEST: Final = 8 * 1024 * 1024  # bytes
FIRST: Final = 256 * 1024  # bytes
LEAST: Final = 64 * 1024  # bytes
PROMPT: Final = 2.5  # seconds to an acknowledgement; a fraction of what a ping may take
SHRINKS: Final = 4


class Window:
    """Of one sender, over all of its connections."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.size = FIRST
        """Bytes; a batch may begin while less is under way."""
        self._clock = clock
        self._batches: deque[tuple[int, int, float]] = deque()  # (last sequence, bytes, when it was sent)

    def __len__(self) -> int:
        """Batches under way."""
        return len(self._batches)

    @property
    def has_room(self) -> bool:
        """True when another batch may be sent."""
        return len(self._batches) < BATCHES and sum(size for _, size, _ in self._batches) < self.size

    @property
    def last(self) -> int:
        """Last sequence of the newest batch; 0 where nothing is under way."""
        return self._batches[-1][0] if self._batches else 0

    def sent(self, seq: int, size: int) -> None:
        """A batch of ``size`` bytes up to the sequence ``seq`` goes on its way."""
        self._batches.append((seq, size, self._clock()))

    def acknowledged(self, seq: int) -> None:
        """Everything up to and with ``seq`` has arrived."""
        while self._batches and self._batches[0][0] <= seq:
            sent_at = self._batches.popleft()[2]
            if self._clock() - sent_at < PROMPT:
                self.size = min(LARGEST, 2 * self.size)

    def lost(self) -> None:
        """The connection has ended, and nothing is under way any more."""
        if self._batches and self._clock() - self._batches[0][2] > PROMPT:
            self.size = max(LEAST, self.size // SHRINKS)
        self._batches.clear()
