"""Writes TensorBoard event files record by record, as its `EventFileWriter` does."""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c


class EventWriter:
    """One event file that grows. What is written is flushed at once."""

    def __init__(self, folder: Path, *, created: int = 1_700_000_000, number: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{created}.host.1.{number}"
        self._file = self.path.open("ab", buffering=0)

    def add(self, step: int, time: float | None = None, **scalars: float) -> None:
        """Append one event for each scalar; double underscores in a name become slashes."""
        self.write(b"".join(event(step, tag.replace("__", "/"), value, time) for tag, value in scalars.items()))

    def write(self, data: bytes) -> None:
        """Append bytes, which need not be a whole record."""
        self._file.write(data)

    def close(self) -> None:
        self._file.close()


def event(step: int, tag: str, value: float, time: float | None = None) -> bytes:
    """Return the framed record of one scalar. ``time`` is a second for each step by default."""
    name = tag.encode()
    number = _delimited(1, name) + b"\x15" + struct.pack("<f", value)
    wall_time = 1_700_000_000.0 + step if time is None else time
    message = b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(step) + _delimited(5, _delimited(1, number))
    length = struct.pack("<Q", len(message))
    return length + _checksum(length) + message + _checksum(message)


def _delimited(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def _checksum(data: bytes) -> bytes:
    crc = int(google_crc32c.value(data))
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
