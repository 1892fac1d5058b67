"""The tail of a spool's queue while the disk does not accept it: bounded, in memory, lost with the process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from itertools import islice

from client_sdk.spool.spool_file import FRAME


class MemoryTail:
    """Consecutive records in memory. One thread appends; another one reads and forgets."""

    def __init__(self, limit: int) -> None:
        """``limit`` is in bytes and counts framing, as on the disk."""
        self.size = 0
        """Bytes of the records, framing included."""
        self._limit = limit
        self._records: deque[bytes] = deque()
        self._first = 1  # sequence of the oldest record
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._records)

    @property
    def first(self) -> int:
        """Sequence of the oldest record."""
        return self._first

    def append(self, seq: int, payload: bytes | bytearray, reserve: float) -> bool:
        """Keep a copy of the record ``seq``, which follows the last one. Returns False if there is no room.

        ``reserve`` multiplies the limit.
        """
        size = FRAME.size + len(payload)
        if self.size + size > self._limit * reserve:
            return False
        with self._lock:
            if not self._records:
                self._first = seq
            self._records.append(bytes(payload))
            self.size += size
        return True

    def read(self, seq: int, max_bytes: int) -> list[bytes] | None:
        """Return records from ``seq`` on, at least one, up to ``max_bytes``; None if ``seq`` is not in memory."""
        with self._lock:
            if not self._records or seq < self._first:
                return None
            payloads: list[bytes] = []
            size = 0
            for payload in islice(self._records, seq - self._first, None):
                size += len(payload)
                if payloads and size > max_bytes:
                    break
                payloads.append(payload)
            return payloads

    def move(self, write: Callable[[int, bytes], None], max_bytes: int) -> None:
        """Pass the oldest records with their sequences to ``write``, and remove each one that it has written.

        Stops after ``max_bytes`` or when no record is left. Raises what ``write`` raises.
        """
        moved = 0
        with self._lock:
            while self._records and moved < max_bytes:
                write(self._first, self._records[0])
                size = FRAME.size + len(self._records.popleft())
                self._first += 1
                self.size -= size
                moved += size

    def forget(self, seq: int) -> None:
        """Remove every record up to and including ``seq``."""
        with self._lock:
            while self._records and self._first <= seq:
                self.size -= FRAME.size + len(self._records.popleft())
                self._first += 1
