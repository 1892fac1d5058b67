"""One file of a spool: consecutive payloads, each checked by CRC.

    file    = magic (8 bytes "SPKWSEG1") · first sequence (uint64) · frame*
    frame   = length of payload (uint32, ≥ 1) · CRC-32 of payload (uint32) · payload

Little-endian. The i-th frame has the sequence "first sequence" + i. A frame that is cut short, has no length (the rest
of a file that was made in advance) or fails its CRC ends the file: what follows cannot be trusted. Owns the bytes and
their bookkeeping; writing them is `client_sdk.spool.appender`'s, which files there are is the spool's.
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


class SpoolFile:
    """Bookkeeping of one file. ``end`` and ``count`` are written by the appending thread alone and read by others:
    bytes before ``end`` never change, but by `rewrite`, which the spool's files lock keeps apart from readers."""

    __slots__ = ("count", "end", "first_seq", "passes", "path", "saved", "start")

    def __init__(self, path: Path, first_seq: int, *, start: int, end: int = HEADER.size, count: int = 0) -> None:
        self.path = path
        self.first_seq = first_seq
        self.start = start  # bytes of the frames in the files before this one, as they were appended
        self.end = end
        self.count = count
        self.saved = 0  # bytes that thinning took out of this file
        self.passes = 0  # how often it was thinned

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.count - 1

    def bytes_before(self, offset: int) -> int:
        """Bytes ever appended to the spool that lie before ``offset`` of this file; what was thinned lies at its
        beginning."""
        return self.start + self.saved + offset - HEADER.size

    @classmethod
    def load(cls, path: Path, start: int) -> SpoolFile | None:
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

    def rewrite(self, payloads: list[bytes], place: Path) -> int:
        """Write ``payloads``, one for each there is, to ``place``, a file that can replace this one; its size.

        Raises `OSError`."""
        assert len(payloads) == self.count
        data = bytearray(HEADER.pack(MAGIC, self.first_seq))
        for payload in payloads:
            data += frame_header(payload) + payload
        place.write_bytes(data)
        return len(data)


def frame_header(payload: bytes) -> bytes:
    """What stands before ``payload`` in the file."""
    return FRAME.pack(len(payload), zlib.crc32(payload))


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
