"""The wall clock of the trainer, which the campaign sets forward and back through an offset in a shared mapped file."""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path

_OFFSET = struct.Struct("<d")  # seconds


class JumpingClock:
    """A wall clock with an offset that another process can change."""

    def __init__(self, path: Path) -> None:
        """Map the file that holds the offset, and create it if it does not exist."""
        if not path.exists():
            path.write_bytes(_OFFSET.pack(0.0))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _OFFSET.size)
        self._real = time.time

    def __call__(self) -> float:
        """Return the Unix time that the trainer sees, in seconds."""
        return self._real() + float(_OFFSET.unpack(self._map[:])[0])

    def jump(self, seconds: float) -> None:
        """Set the clock forward, or back if ``seconds`` is negative."""
        self._map[:] = _OFFSET.pack(_OFFSET.unpack(self._map[:])[0] + seconds)

    def set_right(self) -> None:
        """Remove the offset."""
        self._map[:] = _OFFSET.pack(0.0)

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()
