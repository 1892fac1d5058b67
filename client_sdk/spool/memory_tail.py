"""The end of a spool's queue while the disk does not take it: bounded, in memory, lost with the process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from itertools import islice

from client_sdk.spool.spool_file import FRAME


class MemoryTail:
    """Consecutive records. Appended to by one thread, read and forgotten by another."""

    def __init__(self, limit: int) -> None:
        """``limit``: bytes, framing included as on disk."""
        self.size = 0
        self._limit = limit
        self._records: deque[bytes] = deque()
        self._first = 1  # sequence of the first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Records."""
        return len(self._records)

    @property
    def first(self) -> int:
        """Sequence of the oldest record."""
        return self._first

    def append(self, seq: int, payload: bytes | bytearray, reserve: float) -> bool:
        """Keep a copy of the record ``seq``, which follows the last one. False: there is no room."""
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
        """Records from ``seq`` on, at least one; None when ``seq`` is not here."""
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

    def move(self, write: Callable[[int, bytes], None], most_bytes: int) -> None:
        """Give the oldest records to ``write``, with their sequences, until they are ``most_bytes`` or all; let go of
        each that it takes. Raises what it raises."""
        moved = 0
        with self._lock:
            while self._records and moved < most_bytes:
                write(self._first, self._records[0])
                size = FRAME.size + len(self._records.popleft())
                self._first += 1
                self.size -= size
                moved += size

    def forget(self, seq: int) -> None:
        """Let go of everything up to and with ``seq``."""
        with self._lock:
            while self._records and self._first <= seq:
                self.size -= FRAME.size + len(self._records.popleft())
                self._first += 1
