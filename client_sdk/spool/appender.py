"""Appends records to one spool file: by a copy into mapped memory where that is safe, by a system call elsewhere.

A mapped file belongs to the page cache, as a written one does, so its bytes outlive a killed process. A copy needs no
system call and keeps the interpreter's lock, so that no other thread can run in the middle of `log`. But a store into a
page for which the disk has no block kills the process (SIGBUS). Blocks are therefore reserved first, and files are
mapped only on file systems that honour a reservation; on others (NFS, Lustre, FUSE, btrfs …) records are written.

The first store into a page costs the storing thread a page fault, during which the file system takes its locks: 5 µs
or more each, four times for a record of 15 kB. Another thread therefore populates the next pages in advance
(`Appender.prepare`).

All other methods are called by one thread at a time, which `client_sdk.spool.spool` ensures.
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
"""File system types on which a reserved block is guaranteed to be writable."""
MOUNTS: Final = Path("/proc/self/mountinfo")
QUIET_BYTES: Final = 5 * 1024  # `zlib.crc32` releases the interpreter's lock for more
AHEAD_BYTES: Final = 512 * 1024  # after the end of the records; their pages are populated in advance
POPULATE_BYTES: Final = 32 * 1024  # per system call: the interpreter's lock is held for some ten microseconds
POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE of Linux 5.14; Python has no name for it before 3.14
LARGE_BYTES: Final = 128 * 1024  # a payload whose checksum takes so long that other threads may run meanwhile


class Appender:
    """An open spool file of ``size`` bytes, or of any size if it is not mapped."""

    __slots__ = ("_descriptor", "_map", "_prepared", "_size", "path")

    def __init__(self, path: Path, size: int, *, mapped: bool) -> None:
        """Create the file. Raises `OSError`."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._map: mmap.mmap | None = None
        self._size = size
        self._prepared = 0  # bytes from the beginning whose pages are populated
        if mapped:
            try:
                os.posix_fallocate(self._descriptor, 0, size)
                self._map = mmap.mmap(self._descriptor, size)
            except OSError:  # no space for a whole file: use what there is, record by record
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, 0)
            self.prepare(0)

    def has_room(self, end: int, size: int) -> bool:
        """Return whether ``size`` bytes fit after the offset ``end``."""
        return self._map is None or end + size <= self._size

    def begin(self, first_seq: int, path: Path) -> None:
        """Write the file's header and rename the file to ``path``. Raises `OSError`."""
        self._write(0, HEADER.pack(MAGIC, first_seq), b"")
        os.rename(self.path, path)
        self.path = path

    def prepare(self, end: int) -> None:
        """Populate the pages after the offset ``end`` that are not populated yet.

        May be called from another thread than `append`, but not from another than `close`. Where the system does not
        support it, the page faults happen in `append`.
        """
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
        """Write one frame at the offset ``end`` and return the offset after it.

        A killed process leaves the frame complete or torn. Raises `OSError`; the file is then as it was before, as far
        as the disk allows.
        """
        size = len(payload)
        header = FRAME.pack(size, _checksum(payload))
        self._write(end, header, payload)
        return end + FRAME.size + size

    def close(self, end: int) -> None:
        """Close the file and free what was reserved after the offset ``end``. Raises `OSError`."""
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
            self._map[offset:middle] = header  # last, because there is no frame without its header
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
    """Return whether files in ``directory`` may be mapped, judged by the type of the file system on Linux."""
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
