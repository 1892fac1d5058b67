"""The directory of one spool: who holds it, what it says about its writer, how far the server has it.

    <run id>-<writer>/
        lock                      held (POSIX record lock) by the process that uses the directory
        meta                      msgpack `Meta`: the hello with every layout, the finish; replaced atomically
        acknowledged              sequence (uint64) · CRC-32 of these 8 bytes (uint32)
        00000000000000000001.segment …   see `client_sdk.spool.spool_file`

Owns everything in it but the segments. Methods raise `OSError`.
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

_held: set[tuple[int, str]] = set()
"""(process id, directory) of the locks of this process: POSIX record locks do not exclude their own process."""


class Meta(msgspec.Struct, kw_only=True):
    """What a later process must know to send what this one left."""

    hello: Hello
    base: int = 0
    """Subtracted from a sequence of the spool to get that on the wire; grows when the server lost its data."""
    finish: Finish | None = None


class SpoolDirectory:
    """One directory, held by at most one user at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_file: int | None = None

    def hold(self) -> None:
        """Exclude others until `release`. Raises `BlockingIOError` when another process, or this one, uses it."""
        key = (os.getpid(), str(self.path))
        if key in _held:
            raise BlockingIOError("this process uses it")
        descriptor = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise type(error)(f"another process uses it ({error})") from error
        self._lock_file = descriptor
        _held.add(key)

    def release(self) -> None:
        """Let others use it; nothing happens when it is not held."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            _held.discard((os.getpid(), str(self.path)))
            self._lock_file = None

    def delete(self) -> None:
        """Remove it with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def write_meta(self, meta: Meta) -> None:
        temporary = self.path / (META_NAME + ".new")
        temporary.write_bytes(msgspec.msgpack.encode(meta))
        os.replace(temporary, self.path / META_NAME)

    def read_meta(self) -> Meta:
        """Raises `msgspec.DecodeError` too, when it is damaged."""
        return msgspec.msgpack.decode((self.path / META_NAME).read_bytes(), type=Meta)

    def write_watermark(self, seq: int) -> None:
        """Remember that the server has everything up to and with ``seq``."""
        data = _WATERMARK.pack(seq, zlib.crc32(struct.pack("<Q", seq)))
        descriptor = os.open(self.path / _ACKNOWLEDGED, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, data, 0)
        finally:
            os.close(descriptor)

    def read_watermark(self) -> int:
        """0 when there is none, or a damaged one, which costs a resend that the server recognises."""
        try:
            seq, checksum = _WATERMARK.unpack((self.path / _ACKNOWLEDGED).read_bytes())
        except (OSError, struct.error):
            return 0
        return int(seq) if zlib.crc32(struct.pack("<Q", seq)) == checksum else 0


def find_spools(root: Path) -> list[tuple[Path, Meta]]:
    """Spool directories under ``root`` with what they say, in the order in which their runs began; those in use among
    them. Damaged ones are left out.

    The order is that of the lock files, which are never written: the clock of a training may jump.
    """
    found: list[tuple[int, Path, Meta]] = []
    try:
        for path in root.iterdir():
            try:
                began = (path / LOCK_NAME).stat().st_mtime_ns
                found.append((began, path, SpoolDirectory(path).read_meta()))
            except (OSError, msgspec.DecodeError):
                continue  # another file, or a spool that somebody deletes just now
    except OSError:
        return []
    return [(path, meta) for _, path, meta in sorted(found, key=lambda entry: entry[:2])]
