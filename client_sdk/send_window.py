"""The send window: how many bytes may be on the wire without an acknowledgement, fewer on a slow link.

A ping waits behind all bytes that were sent before it. What a fast link carries in a moment takes a slow one minutes:
the connection would be considered dead, and so would each next one, which sends the unacknowledged bytes again. The
window therefore starts small, grows while acknowledgements are prompt, and shrinks when a connection ends without one.

Pure: the sender does the sending. Used by one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

MAX_BATCHES: Final = 8  # sent and not acknowledged
MAX_BYTES: Final = 8 * 1024 * 1024
INITIAL_BYTES: Final = 256 * 1024
MIN_BYTES: Final = 64 * 1024
PROMPT: Final = 2.5  # seconds to an acknowledgement; a fraction of the ping timeout
SHRINK_FACTOR: Final = 4


class SendWindow:
    """The unacknowledged batches of one sender, over all of its connections.

    >>> window = SendWindow(clock=lambda: 0.0)
    >>> window.sent(10, size=INITIAL_BYTES)
    >>> window.has_room
    False
    >>> window.acknowledged(10)
    >>> window.has_room, window.size == 2 * INITIAL_BYTES
    (True, True)
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.size = INITIAL_BYTES
        """Size of the window in bytes; another batch may be sent while fewer bytes are unacknowledged."""
        self._clock = clock
        self._batches: deque[tuple[int, int, float]] = deque()  # (last sequence, bytes, time of sending)

    def __len__(self) -> int:
        """Return the number of unacknowledged batches."""
        return len(self._batches)

    @property
    def has_room(self) -> bool:
        """Whether another batch may be sent."""
        return len(self._batches) < MAX_BATCHES and sum(size for _, size, _ in self._batches) < self.size

    @property
    def last_seq(self) -> int:
        """Last sequence of the newest unacknowledged batch, or 0 if there is none."""
        return self._batches[-1][0] if self._batches else 0

    def sent(self, seq: int, size: int) -> None:
        """Add a batch of ``size`` bytes that ends with the sequence ``seq``."""
        self._batches.append((seq, size, self._clock()))

    def acknowledged(self, seq: int) -> None:
        """Remove batches up to and including ``seq``; a prompt acknowledgement doubles the window."""
        while self._batches and self._batches[0][0] <= seq:
            sent_at = self._batches.popleft()[2]
            if self._clock() - sent_at < PROMPT:
                self.size = min(MAX_BYTES, 2 * self.size)

    def disconnected(self) -> None:
        """Remove all batches, because the connection has ended; an overdue acknowledgement shrinks the window."""
        if self._batches and self._clock() - self._batches[0][2] > PROMPT:
            self.size = max(MIN_BYTES, self.size // SHRINK_FACTOR)
        self._batches.clear()
