"""The directory of one spool: its lock, the description of its writer, and how far the server has acknowledged it.

    <run id>-<writer>/
        lock                      locked (POSIX record lock) by the process that uses the directory
        meta                      msgpack `Meta`: the hello with every layout, the finish; replaced atomically
        acknowledged              sequence (uint64) · CRC-32 of these 8 bytes (uint32)
        00000000000000000001.segment …   spool files, see `client_sdk.spool.spool_file`

This module owns everything in the directory except the spool files. Methods raise `OSError`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Final

import msgspec

from client_sdk.protocol import Finish, Hello

META_NAME: Final = "meta"
LOCK_NAME: Final = "lock"
_ACKNOWLEDGED: Final = "acknowledged"
_WATERMARK: Final = struct.Struct("<QI")

_locked: set[tuple[int, str]] = set()
"""Directories that this process has locked, with its process id: a POSIX record lock does not exclude its owner."""


class Meta(msgspec.Struct, kw_only=True):
    """Everything that a later process needs to send the records of a spool."""

    hello: Hello
    base: int = 0
    """Difference between a sequence of the spool and the same one on the wire; grows if the server loses its data."""
    finish: Finish | None = None


class SpoolDirectory:
    """One directory, locked by at most one user at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_file: int | None = None

    def lock(self) -> None:
        """Exclude other users until `unlock`. Raises `BlockingIOError` if another process, or this one, uses it."""
        key = (os.getpid(), str(self.path))
        if key in _locked:
            raise BlockingIOError("this process uses it")
        descriptor = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise type(error)(f"another process uses it ({error})") from error
        self._lock_file = descriptor
        _locked.add(key)

    def unlock(self) -> None:
        """Let others use the directory; does nothing if it is not locked."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            _locked.discard((os.getpid(), str(self.path)))
            self._lock_file = None

    def delete(self) -> None:
        """Remove the directory with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def write_meta(self, meta: Meta) -> None:
        """Replace the description of the writer atomically."""
        temporary = self.path / (META_NAME + ".new")
        temporary.write_bytes(msgspec.msgpack.encode(meta))
        os.replace(temporary, self.path / META_NAME)

    def read_meta(self) -> Meta:
        """Return the description of the writer. Raises `msgspec.DecodeError` if it is damaged."""
        return msgspec.msgpack.decode((self.path / META_NAME).read_bytes(), type=Meta)

    def write_watermark(self, seq: int) -> None:
        """Store that the server has everything up to and including ``seq``."""
        data = _WATERMARK.pack(seq, zlib.crc32(struct.pack("<Q", seq)))
        descriptor = os.open(self.path / _ACKNOWLEDGED, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, data, 0)
        finally:
            os.close(descriptor)

    def read_watermark(self) -> int:
        """Return the last acknowledged sequence, or 0 if none is stored or it is damaged.

        A watermark that is too low costs only a resend, whose records the server recognises.
        """
        try:
            seq, checksum = _WATERMARK.unpack((self.path / _ACKNOWLEDGED).read_bytes())
        except (OSError, struct.error):
            return 0
        return int(seq) if zlib.crc32(struct.pack("<Q", seq)) == checksum else 0


def find_spools(root: Path) -> list[tuple[Path, Meta]]:
    """Return the spool directories under ``root`` with their descriptions, in the order in which their runs began.

    Includes directories that are in use and leaves out damaged ones. The order is that of the lock files' modification
    times: they are never written again, whereas the clock of the training process may jump.
    """
    found: list[tuple[int, Path, Meta]] = []
    try:
        for path in root.iterdir():
            try:
                began = (path / LOCK_NAME).stat().st_mtime_ns
                found.append((began, path, SpoolDirectory(path).read_meta()))
            except (OSError, msgspec.DecodeError):
                continue  # another file, or a spool that is being deleted
    except OSError:
        return []
    return [(path, meta) for _, path, meta in sorted(found, key=lambda entry: entry[:2])]
