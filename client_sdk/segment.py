"""One file of a spool: consecutive payloads, each checked by CRC.

    file    = magic (8 bytes "SPKWSEG1") · first sequence (uint64) · frame*
    frame   = length of payload (uint32, ≥ 1) · CRC-32 of payload (uint32) · payload

Little-endian. The i-th frame has the sequence "first sequence" + i. A frame that is cut short or fails its CRC ends the
file: what follows cannot be trusted. Owns the bytes; which files there are is the spool's.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Final

MAGIC: Final = b"SPKWSEG1"
HEADER: Final = struct.Struct("<8sQ")
FRAME: Final = struct.Struct("<II")
SUFFIX: Final = ".segment"


class Segment:
    """Bookkeeping of one file. ``end`` and ``count`` are written by the appending thread alone and read by others:
    bytes before ``end`` never change."""

    __slots__ = ("count", "end", "first_seq", "path", "start")

    def __init__(self, path: Path, first_seq: int, *, start: int, end: int, count: int) -> None:
        self.path = path
        self.first_seq = first_seq
        self.start = start  # bytes of the frames in the files before this one
        self.end = end
        self.count = count

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.count - 1

    def bytes_before(self, offset: int) -> int:
        """Bytes of all frames of the spool that lie before ``offset`` of this file."""
        return self.start + offset - HEADER.size

    @classmethod
    def create(cls, directory: Path, first_seq: int, start: int) -> tuple[Segment, int]:
        """A new file and its descriptor, open for appending. Raises `OSError`."""
        path = directory / f"{first_seq:020d}{SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.write(descriptor, HEADER.pack(MAGIC, first_seq)) != HEADER.size:
                raise OSError("the disk is full")
        except OSError:
            os.close(descriptor)
            raise
        return cls(path, first_seq, start=start, end=HEADER.size, count=0), descriptor

    @classmethod
    def load(cls, path: Path, start: int) -> Segment | None:
        """Check a file from its first byte and cut what is torn off its end. None when not even the header is whole.

        Raises `OSError` when the file cannot be read or cut.
        """
        data = path.read_bytes()
        if len(data) < HEADER.size:
            return None
        magic, first_seq = HEADER.unpack_from(data)
        if magic != MAGIC or first_seq < 1:
            return None
        end, count = HEADER.size, 0
        for begin, stop in frames(data, HEADER.size):
            if zlib.crc32(data[begin:stop]) != FRAME.unpack_from(data, begin - FRAME.size)[1]:
                break
            end, count = stop, count + 1
        if end < len(data):
            os.truncate(path, end)
        return cls(path, first_seq, start=start, end=end, count=count)

    def append(self, descriptor: int, payload: bytes) -> None:
        """Write one frame; one system call, so that a killed process leaves it whole or torn, never interleaved.

        Raises `OSError`; then the file is as it was before, as far as the disk allows.
        """
        size = FRAME.size + len(payload)
        written = 0
        try:
            written = os.writev(descriptor, (FRAME.pack(len(payload), zlib.crc32(payload)), payload))
            if written != size:
                raise OSError("the disk is full")
        except OSError:
            os.ftruncate(descriptor, self.end)
            raise
        self.end += size
        self.count += 1

    def read(self, offset: int, max_bytes: int) -> tuple[list[bytes], int]:
        """Payloads from the frame at ``offset`` on, at least one, then as many as fit ``max_bytes``; and the offset
        after them. Raises `OSError`."""
        limit = self.end
        if offset >= limit:
            return [], offset
        with self.path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), min(max(max_bytes, FRAME.size), limit - offset), offset)
            length = FRAME.unpack_from(data)[0] + FRAME.size
            if length > len(data):
                data = os.pread(file.fileno(), length, offset)
        payloads = []
        after = 0
        for start, stop in frames(data, 0):
            payloads.append(data[start:stop])
            after = stop
        return payloads, offset + after

    def locate(self, seq: int) -> int:
        """Offset of the frame of ``seq``; `end` for the one after the last. Reads the whole file."""
        if seq > self.last_seq:
            return self.end
        data = self.path.read_bytes()[: self.end]
        position = HEADER.size
        for _, (_, stop) in zip(range(seq - self.first_seq), frames(data, HEADER.size), strict=False):
            position = stop
        return position


def frames(data: bytes, offset: int) -> list[tuple[int, int]]:
    """(start, stop) of each payload that lies whole within ``data``; lengths only, no CRC."""
    found = []
    size = len(data)
    while offset + FRAME.size <= size:
        length = FRAME.unpack_from(data, offset)[0]
        start = offset + FRAME.size
        offset = start + length
        if not length or offset > size:
            break
        found.append((start, offset))
    return found
