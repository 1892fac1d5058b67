"""One spool file: consecutive payloads, each protected by a CRC.

    file    = magic (8 bytes "SPKWSEG1") · first sequence (uint64) · frame*
    frame   = length of payload (uint32, ≥ 1) · CRC-32 of payload (uint32) · payload

All integers are little-endian. The i-th frame has the sequence "first sequence" + i. A frame that is cut short, has
length 0 (the rest of a file that was allocated in advance) or fails its CRC ends the file, because nothing after it can
be trusted. This module owns the bytes and their bookkeeping. `client_sdk.spool.appender` writes them, and
`client_sdk.spool.file_sequence` decides which files there are.
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
"""Suffix of a spool file's name, kept from the first release so that its spools still open."""


class SpoolFile:
    """Bookkeeping of one spool file.

    Only the appending thread writes ``end`` and ``count``; other threads read them. Bytes before ``end`` never change,
    except by `rewrite`, which the lock of `SpoolFileSequence` keeps apart from readers.
    """

    __slots__ = ("count", "end", "first_seq", "passes", "path", "saved", "start")

    def __init__(self, path: Path, first_seq: int, *, start: int, end: int = HEADER.size, count: int = 0) -> None:
        self.path = path
        self.first_seq = first_seq
        self.start = start  # bytes of the frames in earlier files, as they were appended
        self.end = end
        self.count = count
        self.saved = 0  # bytes that thinning removed from this file
        self.passes = 0  # how often this file was thinned

    @property
    def last_seq(self) -> int:
        """Sequence of the last record in the file; `first_seq` - 1 for an empty file."""
        return self.first_seq + self.count - 1

    def bytes_before(self, offset: int) -> int:
        """Return how many bytes were ever appended to the spool before ``offset`` of this file.

        Bytes that thinning removed count as if they lay at the beginning of the file.
        """
        return self.start + self.saved + offset - HEADER.size

    @classmethod
    def load(cls, path: Path, start: int) -> SpoolFile | None:
        """Check a file from its first byte on and cut off a torn end.

        Returns None if not even the header is complete. Raises `OSError` if the file cannot be read or cut.
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
        """Return the payloads from the frame at ``offset`` on, and the offset after them.

        Reads at least one payload, then as many as fit into ``max_bytes``. Raises `OSError`.
        """
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
        """Return the offset of the frame of ``seq``, or `end` if ``seq`` follows the last record.

        Reads the whole file.
        """
        if seq > self.last_seq:
            return self.end
        data = self.path.read_bytes()[: self.end]
        position = HEADER.size
        for _, (_, stop) in zip(range(seq - self.first_seq), frames(data, HEADER.size), strict=False):
            position = stop
        return position

    def rewrite(self, payloads: list[bytes], target: Path) -> int:
        """Write a successor of this file to ``target`` and return its size in bytes.

        ``payloads`` has one payload for each record of this file. Raises `OSError`.
        """
        assert len(payloads) == self.count
        data = bytearray(HEADER.pack(MAGIC, self.first_seq))
        for payload in payloads:
            data += frame_header(payload) + payload
        target.write_bytes(data)
        return len(data)


def frame_header(payload: bytes) -> bytes:
    """Return the bytes that precede ``payload`` in a spool file: its length and its CRC.

    >>> frame_header(b"record").hex(" ", 4)
    '06000000 919f349b'
    """
    return FRAME.pack(len(payload), zlib.crc32(payload))


def frames(data: bytes, offset: int) -> list[tuple[int, int]]:
    """Return (start, stop) of each payload that lies completely within ``data``. Does not check any CRC.

    >>> data = frame_header(b"one") + b"one" + frame_header(b"second") + b"second"
    >>> [data[start:stop] for start, stop in frames(data, 0)]
    [b'one', b'second']
    >>> len(frames(data[:-1], 0))
    1
    """
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
