"""Writes records at the end of one segment file: a copy into mapped memory where that is safe, a system call elsewhere.

A mapped file belongs to the page cache, as a written one does: its bytes outlive a killed process. A copy costs no
system call and keeps the interpreter's lock, so that no other thread can take its turn in the middle of `log`. But a
store into a page for which the disk has no block kills the process (SIGBUS). So the blocks are reserved first, and
files are mapped only on file systems where a reservation is a promise; elsewhere (NFS, Lustre, FUSE, btrfs …) they are
written.

A page that is stored into for the first time costs the thread that does so a fault, in which the file system takes its
locks: 5 µs and more each, four times a record of 15 kB. So another thread makes the next pages ahead (`prepare`).

Else called by one thread at a time; who that is, is the spool's.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from pathlib import Path
from typing import Final

from client_sdk.spool.spool_file import FRAME, HEADER, MAGIC

MAPPABLE: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "tmpfs", "overlay"})
MOUNTS: Final = Path("/proc/self/mountinfo")
QUIET_BYTES: Final = 5 * 1024  # `zlib.crc32` lets go of the interpreter's lock beyond
AHEAD_BYTES: Final = 512 * 1024  # behind the end, whose pages are made in advance
POPULATE_BYTES: Final = 32 * 1024  # at once: the interpreter's lock is held for some ten microseconds
POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE, of Linux 5.14; Python has no name for it before 3.14
LARGE_BYTES: Final = 128 * 1024  # a payload for whose checksum other threads may as well run


class Appender:
    """An open file of ``size`` bytes, or of any size where it is not mapped."""

    __slots__ = ("_descriptor", "_map", "_prepared", "_size", "path")

    def __init__(self, path: Path, size: int, *, mapped: bool) -> None:
        """Make the file. Raises `OSError`."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._map: mmap.mmap | None = None
        self._size = size
        self._prepared = 0  # bytes from the beginning whose pages are there
        if mapped:
            try:
                os.posix_fallocate(self._descriptor, 0, size)
                self._map = mmap.mmap(self._descriptor, size)
            except OSError:  # no room for a whole file: use what there is, record by record
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, 0)
            self.prepare(0)

    @property
    def is_mapped(self) -> bool:
        return self._map is not None

    def has_room(self, end: int, size: int) -> bool:
        """True when ``size`` bytes fit after ``end``."""
        return self._map is None or end + size <= self._size

    def begin(self, first_seq: int, path: Path) -> None:
        """Write the file's header and give it its name. Raises `OSError`."""
        self._write(0, HEADER.pack(MAGIC, first_seq), b"")
        os.rename(self.path, path)
        self.path = path

    def prepare(self, end: int) -> None:
        """Make the pages behind ``end`` that are not there yet. Called from another thread than `append`, but not from
        another than `close`; where the system cannot do it, the faults come later."""
        start = max(self._prepared, end // POPULATE_BYTES * POPULATE_BYTES)
        stop = min(end + AHEAD_BYTES, self._size)
        if self._map is None or stop - start < POPULATE_BYTES:
            return
        try:
            while start < stop:
                self._map.madvise(POPULATE_WRITE, start, min(POPULATE_BYTES, self._size - start))
                start += POPULATE_BYTES
            self._prepared = start
        except (OSError, ValueError, AttributeError):
            self._prepared = self._size

    def append(self, end: int, payload: bytes | bytearray) -> int:
        """Write one frame at ``end``; returns the new end. A killed process leaves it whole or torn.

        Raises `OSError`; then the file is as it was before, as far as the disk allows.
        """
        size = len(payload)
        header = FRAME.pack(size, _checksum(payload))
        self._write(end, header, payload)
        return end + FRAME.size + size

    def close(self, end: int) -> None:
        """Close, and give back what was reserved after ``end``. Raises `OSError`."""
        try:
            if self._map is not None:
                self._map.close()
                os.ftruncate(self._descriptor, end)
        finally:
            os.close(self._descriptor)

    def _write(self, offset: int, header: bytes, payload: bytes | bytearray) -> None:
        middle = offset + len(header)
        end = middle + len(payload)
        if self._map is not None:
            self._map[middle:end] = payload
            self._map[offset:middle] = header  # last: without it there is no frame
            return
        written = 0
        try:
            written = os.pwritev(self._descriptor, (header, payload), offset)
            if written != end - offset:
                raise OSError("the disk is full")
        except OSError:
            os.ftruncate(self._descriptor, offset)
            raise


def may_map(directory: Path) -> bool:
    """True where a reserved block is a promise: by the type of the file system, on Linux."""
    try:
        device = directory.stat().st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
            fields, _, source = line.partition(" - ")
            if fields.split()[2] == wanted:
                return source.split()[0] in MAPPABLE
    except (OSError, IndexError):
        return False
    return False


def _checksum(payload: bytes | bytearray) -> int:
    size = len(payload)
    if size <= QUIET_BYTES or size > LARGE_BYTES:
        return zlib.crc32(payload)
    view = memoryview(payload)
    checksum = 0
    for start in range(0, size, QUIET_BYTES):
        checksum = zlib.crc32(view[start : start + QUIET_BYTES], checksum)
    return checksum
