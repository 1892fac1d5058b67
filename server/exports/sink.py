"""File in memory whose bytes are taken out while it is being written."""

from __future__ import annotations

from typing import Any


class Sink:
    """Writable file that keeps only the bytes that have not been taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Append bytes, and return their number."""
        part = bytes(data)
        self._parts.append(part)
        self._size += len(part)
        return len(part)

    def tell(self) -> int:
        """Return the number of all bytes written."""
        return self._size

    def flush(self) -> None:
        """Do nothing, because no bytes are held back."""

    def close(self) -> None:
        """Mark the file as closed; its bytes can still be taken."""
        self.closed = True

    def take(self) -> bytes:
        """Return and forget the bytes written since the last call."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken
