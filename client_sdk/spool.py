"""The queue between `log` and the server, on disk: append, read, acknowledge. Survives `kill -9` of the process.

One directory a writer, under SPIKEWATCH_DIR:

    <run id>-<writer>/
        lock                      held (POSIX record lock) by the process that uses the directory
        meta                      msgpack `Meta`: the hello with every layout, the finish; replaced atomically
        acknowledged              sequence (uint64) · CRC-32 of these 8 bytes (uint32)
        00000000000000000001.segment …   see `client_sdk.segment`

Nothing is fsynced per step: written bytes are in the page cache, which outlives the process. A disk that fails turns
the tail of the queue into a bounded one in memory; the disk is tried again once that is empty.

Thread ownership: `append` under the run's lock; `read`, `acknowledge` and `rebase` from the sender thread; a segment
but the last one is only ever removed, by the sender thread.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from client_sdk.errors import SpoolError
from client_sdk.protocol import Finish, Hello, Record, decode_record, encode
from client_sdk.segment import FRAME, HEADER, SUFFIX, Segment

SEGMENT_BYTES: Final = 8 * 1024 * 1024
DISK_LIMIT: Final = 2 * 1024**3  # bytes of unacknowledged records
MEMORY_LIMIT: Final = 64 * 1024**2  # bytes, when the disk fails
DISK_RETRY: Final = 10.0  # seconds before a failed disk is tried again

_WATERMARK: Final = struct.Struct("<QI")
META_NAME: Final = "meta"
_LOCK: Final = "lock"
_ACKNOWLEDGED: Final = "acknowledged"

_held: set[tuple[int, str]] = set()
"""(process id, directory) of the locks of this process: POSIX record locks do not exclude their own process."""


class Meta(msgspec.Struct, kw_only=True):
    """What a later process must know to send what this one left."""

    hello: Hello
    base: int = 0
    """Subtracted from a sequence of the spool to get that on the wire; grows when the server lost its data."""
    finish: Finish | None = None


class Spool:
    """Records of one writer. Sequences start at 1."""

    def __init__(
        self,
        directory: Path | None,
        meta: Meta,
        *,
        disk_limit: int = DISK_LIMIT,
        memory_limit: int = MEMORY_LIMIT,
        segment_bytes: int = SEGMENT_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without a directory everything is kept in memory. Use `create` and `open` for a directory."""
        self.directory = directory
        self.meta = meta
        self.last_seq = 0
        self.acknowledged = 0
        self.failure: OSError | None = None
        """Why the disk was given up, the last time it was."""
        self.lost = 0
        """Records that a damaged file no longer had when it was opened."""
        self._disk_limit = disk_limit
        self._memory_limit = memory_limit
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._lock_file: int | None = None
        self._segments: list[Segment] = []
        self._descriptor: int | None = None  # of the last segment
        self._appended_bytes = 0  # payload and framing, ever
        self._acknowledged_bytes = 0
        self._cursor: tuple[int, Segment, int] | None = None  # next sequence to read, where it is
        self._marks: deque[tuple[int, int]] = deque()  # (last sequence of a read, bytes up to it)
        self._memory: deque[bytes] = deque()
        self._memory_first = 1  # sequence of the first in memory
        self._memory_lock = threading.Lock()
        self._meta_lock = threading.Lock()
        self._memory_bytes = 0
        self._disk_retry_at = 0.0

    @classmethod
    def in_memory(cls, hello: Hello, *, memory_limit: int = MEMORY_LIMIT) -> Spool:
        """A spool that dies with the process, for where no directory can be written."""
        return cls(None, Meta(hello=hello), memory_limit=memory_limit)

    @classmethod
    def create(
        cls,
        root: Path,
        hello: Hello,
        *,
        disk_limit: int = DISK_LIMIT,
        memory_limit: int = MEMORY_LIMIT,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Spool:
        """A new spool under ``root``. Raises `SpoolError` when the directory cannot be used."""
        directory = root / f"{hello.run_id}-{hello.writer}"
        spool = cls(
            directory, Meta(hello=hello), disk_limit=disk_limit, memory_limit=memory_limit, segment_bytes=segment_bytes
        )
        try:
            directory.mkdir(parents=True)
            spool._lock()
            spool._write_meta()
        except OSError as error:
            spool.release()
            raise SpoolError(f"cannot write to {directory}: {error}") from error
        return spool

    @classmethod
    def open(cls, directory: Path) -> Spool:
        """What an earlier process left. Raises `SpoolError` when it is in use, or is no spool."""
        spool = cls(directory, Meta(hello=Hello(version=0, run_id=None, writer="", project="")))
        try:
            spool._lock()
            spool.meta = msgspec.msgpack.decode((directory / META_NAME).read_bytes(), type=Meta)
            spool._load()
        except (OSError, msgspec.DecodeError) as error:
            spool.release()
            raise SpoolError(f"cannot use the spool {directory}: {error}") from error
        return spool

    @property
    def queued_bytes(self) -> int:
        """Bytes not yet acknowledged, on disk and in memory."""
        return max(0, self._appended_bytes - self._acknowledged_bytes) + self._memory_bytes

    @property
    def hello(self) -> Hello:
        return self.meta.hello

    # -- the run's side: the run's lock must be held by the caller --

    def append(self, payload: bytes, *, reserve: float = 1.0) -> bool:
        """Keep one record; its sequence is then `last_seq`. False: no room, nothing was kept.

        ``reserve`` multiplies the limits, so that what matters most still fits when the rest no longer does.
        """
        size = FRAME.size + len(payload)
        if not self._memory and self.directory is not None and self._clock() >= self._disk_retry_at:
            if self.queued_bytes + size > self._disk_limit * reserve:
                return False
            try:
                self._append_to_disk(payload)
            except OSError as error:
                self._give_up_disk(error)
            else:
                self._appended_bytes += size
                self.last_seq += 1
                return True
        if self._memory_bytes + size > self._memory_limit * reserve:
            return False
        with self._memory_lock:
            if not self._memory:
                self._memory_first = self.last_seq + 1
            self._memory.append(payload)
            self._memory_bytes += size
        self.last_seq += 1
        return True

    def introduce(self, hello: Hello) -> None:
        """Replace the hello, because there is a new layout. Before the first record that refers to it."""
        self._replace_meta(hello=hello)

    def finish(self, state: Finish) -> None:
        """Nothing is appended after this; a later process will tell the server so."""
        self._replace_meta(finish=state)

    # -- the sender's side --

    def read(self, after: int, max_bytes: int) -> list[bytes]:
        """Encoded records that follow sequence ``after``: at least one if there is any, then up to ``max_bytes``.

        Raises `OSError` when the disk does not give them back.
        """
        if after >= self.last_seq:
            return []
        with self._memory_lock:
            if self._memory and after + 1 >= self._memory_first:
                return self._read_memory(after + 1 - self._memory_first, max_bytes)
        return self._read_disk(after, max_bytes)

    def acknowledge(self, seq: int) -> None:
        """Forget every record up to and with ``seq``."""
        seq = min(seq, self.last_seq)
        if seq <= self.acknowledged:
            return
        with self._memory_lock:
            while self._memory and self._memory_first <= seq:
                self._memory_bytes -= FRAME.size + len(self._memory.popleft())
                self._memory_first += 1
        self._acknowledged_bytes = self._bytes_up_to(seq)
        self.acknowledged = seq
        while len(self._segments) > 1 and self._segments[0].last_seq <= seq:
            self._segments.pop(0).path.unlink(missing_ok=True)
        if self.directory is not None:
            packed = struct.pack("<Q", seq)
            try:
                with open(self.directory / _ACKNOWLEDGED, "r+b" if self._has_watermark() else "wb", 0) as file:
                    file.write(_WATERMARK.pack(seq, zlib.crc32(packed)))
            except OSError as error:
                self.failure = error  # costs a resend after a crash, which the server recognises

    def rebase(self, writer: str) -> None:
        """Continue as a new ``writer`` that begins with the first unacknowledged record: the server lost its data."""
        self._replace_meta(writer=writer)

    @property
    def oldest(self) -> int:
        """First sequence that can still be read."""
        if self._segments:
            return self._segments[0].first_seq
        return self._memory_first if self._memory else self.last_seq + 1

    def release(self) -> None:
        """Close files and let other processes use the directory. The records stay."""
        for descriptor in (self._descriptor, self._lock_file):
            if descriptor is not None:
                os.close(descriptor)
        if self._lock_file is not None:
            _held.discard((os.getpid(), str(self.directory)))
        self._descriptor = self._lock_file = None

    def delete(self) -> None:
        """Everything is delivered: remove the directory."""
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
        self.release()

    # -- inside --

    def _append_to_disk(self, payload: bytes) -> None:
        assert self.directory is not None
        last = self._segments[-1] if self._segments else None
        if self._descriptor is None or last is None or last.end >= self._segment_bytes:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            last, self._descriptor = Segment.create(self.directory, self.last_seq + 1, self._appended_bytes)
            self._segments.append(last)
        last.append(self._descriptor, payload)

    def _give_up_disk(self, error: OSError) -> None:
        self.failure = error
        self._disk_retry_at = self._clock() + DISK_RETRY
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _read_memory(self, start: int, max_bytes: int) -> list[bytes]:
        """Memory lock must be held by the caller."""
        payloads: list[bytes] = []
        size = 0
        for payload in islice(self._memory, start, None):
            size += len(payload)
            if payloads and size > max_bytes:
                break
            payloads.append(payload)
        return payloads

    def _read_disk(self, after: int, max_bytes: int) -> list[bytes]:
        seq = after + 1
        if self._cursor is not None and self._cursor[0] == seq:
            _, segment, offset = self._cursor
        else:
            segment = self._segment_of(seq)
            offset = segment.locate(seq)
            self._marks.clear()
        if offset >= segment.end:
            segment, offset = self._segment_of(seq), HEADER.size
        payloads, offset = segment.read(offset, max_bytes)
        self._cursor = (seq + len(payloads), segment, offset)
        self._marks.append((seq + len(payloads) - 1, segment.bytes_before(offset)))
        return payloads

    def _segment_of(self, seq: int) -> Segment:
        for segment in self._segments:
            if segment.first_seq <= seq <= segment.last_seq:
                return segment
        raise OSError(f"record {seq} is not in the spool {self.directory}")

    def _bytes_up_to(self, seq: int) -> int:
        """Bytes on disk of the records up to and with ``seq``."""
        while self._marks and self._marks[0][0] <= seq:
            last, size = self._marks.popleft()
            if last == seq:
                return size
        for segment in self._segments:
            if seq <= segment.last_seq:
                return segment.bytes_before(segment.locate(seq + 1) if seq >= segment.first_seq else HEADER.size)
        return self._segments[-1].bytes_before(self._segments[-1].end) if self._segments else 0

    def _has_watermark(self) -> bool:
        return self.directory is not None and (self.directory / _ACKNOWLEDGED).exists()

    def _lock(self) -> None:
        """Raises `OSError` when another process, or this one, uses the directory."""
        assert self.directory is not None
        key = (os.getpid(), str(self.directory))
        if key in _held:
            raise OSError("this process uses it")
        descriptor = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise OSError(f"another process uses it ({error})") from error
        self._lock_file = descriptor
        _held.add(key)

    def _replace_meta(
        self, *, hello: Hello | None = None, writer: str | None = None, finish: Finish | None = None
    ) -> None:
        with self._meta_lock:
            meta = self.meta
            hello = meta.hello if hello is None else msgspec.structs.replace(hello, writer=meta.hello.writer)
            base = meta.base
            if writer is not None:
                hello, base = msgspec.structs.replace(hello, writer=writer), self.acknowledged
            self.meta = Meta(hello=hello, base=base, finish=finish or meta.finish)
            if self.directory is not None:
                try:
                    self._write_meta()
                except OSError as error:
                    self.failure = error

    def _write_meta(self) -> None:
        assert self.directory is not None
        temporary = self.directory / (META_NAME + ".new")
        temporary.write_bytes(msgspec.msgpack.encode(self.meta))
        os.replace(temporary, self.directory / META_NAME)

    def _load(self) -> None:
        """Read what is there, cut torn tails, fill holes so that sequences stay consecutive."""
        assert self.directory is not None
        for path in sorted(self.directory.glob("*" + SUFFIX)):
            segment = Segment.load(path, self._appended_bytes)
            if segment is None:
                path.unlink()
                continue
            if self._segments and segment.first_seq > self._segments[-1].last_seq + 1:
                self._fill(self._segments[-1], segment.first_seq - 1)
                segment.start = self._segments[-1].bytes_before(self._segments[-1].end)
            self._segments.append(segment)
            self._appended_bytes = segment.bytes_before(segment.end)
        self.acknowledged = self._read_watermark()
        if self._segments:
            self.acknowledged = max(self.acknowledged, self._segments[0].first_seq - 1)
            self.last_seq = max(self._segments[-1].last_seq, self.acknowledged)
        else:
            self.last_seq = self.acknowledged
        self._acknowledged_bytes = self._bytes_up_to(self.acknowledged)

    def _read_watermark(self) -> int:
        assert self.directory is not None
        try:
            seq, checksum = _WATERMARK.unpack((self.directory / _ACKNOWLEDGED).read_bytes())
        except (OSError, struct.error):
            return 0
        return int(seq) if zlib.crc32(struct.pack("<Q", seq)) == checksum else 0

    def _fill(self, segment: Segment, last_seq: int) -> None:
        """Stand-ins for records that are gone, at the step of the last one that is not: the server wants no gap."""
        step, moment = 0, self.meta.hello.started_at
        if segment.count:
            offset = segment.locate(segment.last_seq)
            record = decode_record(segment.read(offset, 1)[0][0])
            step, moment = record.step, record.time
        blank = encode(Record(step=step, time=moment, scalars={}))
        descriptor = os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            while segment.last_seq < last_seq:
                segment.append(descriptor, blank)
                self.lost += 1
        finally:
            os.close(descriptor)
