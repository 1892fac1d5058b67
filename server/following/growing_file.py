"""One file that another program appends to, and may rename, replace or truncate meanwhile.

A file is known again by its inode and by the bytes before the offset that was read. Network disks may renumber inodes,
so that the bytes decide where they differ; and a file whose bytes differ is another one, even under the same inode.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path
from typing import BinaryIO

import msgspec

TAIL = 256  # bytes before the offset by which a file is known again
REOPEN_EVERY = 2.0  # seconds after which a file is opened to see its size: network disks keep the answer to `stat`
Signature = tuple[int, int, int]
"""Inode, size and time of the last change in nanoseconds."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """An offset in a file, and what tells the file."""

    inode: int = 0
    offset: int = 0
    tail: str = ""
    """Digest of the bytes before the offset."""


class FileNews:
    """Detects that a file has changed. Thread-safe: one attribute is assigned and compared."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: Signature | None = None
        self._opened = 0.0

    def saw(self, status: os.stat_result | None) -> None:
        """Note the status of the file at a reading, None if there was none."""
        self._seen = None if status is None else signature(status)

    def has_news(self) -> bool:
        """Return whether the file differs from the status that was noted last."""
        now = time.monotonic()
        try:
            if now - self._opened >= REOPEN_EVERY:
                self._opened = now
                with self._path.open("rb") as file:
                    return signature(os.fstat(file.fileno())) != self._seen
            return signature(self._path.stat()) != self._seen
        except FileNotFoundError:
            return self._seen is not None
        except OSError:
            return False  # a network disk that is away; the file is looked at again


def signature(status: os.stat_result) -> Signature:
    """Return what changes when a file does."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def place_in(file: BinaryIO, offset: int) -> Place:
    """Return the place at an offset of an open file. Raises `OSError`."""
    return Place(inode=os.fstat(file.fileno()).st_ino, offset=offset, tail=_tail(file, offset))


def is_same(file: BinaryIO, place: Place) -> bool:
    """Return whether an open file has the bytes that were read before a place. Raises `OSError`."""
    if place.offset == 0:
        return place.inode in (0, os.fstat(file.fileno()).st_ino)
    return os.fstat(file.fileno()).st_size >= place.offset and _tail(file, place.offset) == place.tail


def renamed(path: Path, place: Place) -> Path | None:
    """Return the file of a place under the name that a rotation gave it: in the same folder, its name extended.

    A log is rotated by renaming it (log.txt to log.txt.1, train.log to train-20260101.log), which keeps its inode, or
    by copying it. A copy is known by its bytes, if there are enough of them.
    """
    if place.offset == 0:
        return None
    name, stem, suffix = map(re.escape, (path.name, path.stem, path.suffix))
    rotated = re.compile(f"{name}[-.].+|{stem}[-._]?[0-9][-._0-9T]*{suffix}")
    found = None
    for candidate in sorted(path.parent.glob("*")):
        if not rotated.fullmatch(candidate.name) or candidate.suffix in (".gz", ".xz", ".bz2", ".zst"):
            continue
        if is_moved(candidate, place):
            return candidate
        if place.offset >= TAIL and is_at(candidate, place):
            found = found or candidate
    return found


def is_moved(path: Path, place: Place) -> bool:
    """Return whether a file is the one of a place under another name: it has its inode and its bytes."""
    try:
        return place.offset > 0 and path.stat().st_ino == place.inode and is_at(path, place)
    except OSError:
        return False


def is_at(path: Path, place: Place) -> bool:
    """Return whether a file has the bytes before a place."""
    try:
        with path.open("rb") as file:
            return is_same(file, place)
    except OSError:
        return False


def _tail(file: BinaryIO, offset: int) -> str:
    start = max(0, offset - TAIL)
    return hashlib.sha256(os.pread(file.fileno(), offset - start, start)).hexdigest()[:32]
