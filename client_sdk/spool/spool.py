"""The queue between `log` and the server, on disk: append, read, acknowledge. Survives `kill -9` of the process.

One directory a writer, under SPIKEWATCH_DIR; `client_sdk.spool.directory` says what lies in it. Nothing is fsynced per
step: written bytes are in the page cache, which outlives the process. A disk that fails turns the tail of the queue
into a bounded one in memory; the disk is tried again once that is empty.

Thread ownership: `append` by one thread at a time (the recorder's lock sees to it); `read`, `acknowledge` and `rebase`
from the sender thread; `maintain` from the recorder's thread. No I/O of theirs holds up `log`: see
`client_sdk.spool.file_sequence`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from client_sdk.config import DEFAULT_SPOOL_BYTES
from client_sdk.errors import SpoolError
from client_sdk.protocol import Finish, Hello
from client_sdk.spool.appender import Appender
from client_sdk.spool.directory import Meta, SpoolDirectory
from client_sdk.spool.file_sequence import SpoolFileSequence
from client_sdk.spool.file_supply import FileSupply
from client_sdk.spool.memory_tail import MemoryTail
from client_sdk.spool.spool_file import FRAME, SpoolFile

SEGMENT_BYTES: Final = 8 * 1024 * 1024
THINNING_BEGINS: Final = 0.95  # of the limit
MEMORY_LIMIT: Final = 64 * 1024**2  # bytes, when the disk fails
DISK_RETRY: Final = 10.0  # seconds before a failed disk is tried again
RETURN_BYTES: Final = 256 * 1024  # moved from memory to a disk that works again, in one `append`


class Spool:
    """Records of one writer. Sequences start at 1."""

    def __init__(
        self,
        directory: Path | None,
        meta: Meta,
        *,
        disk_limit: int = DEFAULT_SPOOL_BYTES,
        memory_limit: int = MEMORY_LIMIT,
        segment_bytes: int = SEGMENT_BYTES,
        mapped: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without a directory everything is kept in memory. ``mapped`` None: where the file system allows it. Use
        `create` and `open` for a directory."""
        self.directory = directory
        self.meta = meta
        self.last_seq = 0
        self.acknowledged = 0
        self.failure: OSError | None = None
        """Why the disk was given up, the last time it was."""
        self.lost = 0
        """Records that a damaged file no longer had when it was opened."""
        self._place = None if directory is None else SpoolDirectory(directory)
        self._disk_limit = disk_limit
        self._segment_bytes = segment_bytes
        self._files = None if directory is None else FileSupply(directory, segment_bytes, mapped=mapped)
        self._clock = clock
        self._line = SpoolFileSequence(directory)
        self._appender: Appender | None = None  # of the last file
        self._memory = MemoryTail(memory_limit)
        self._meta_lock = threading.Lock()
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
        disk_limit: int = DEFAULT_SPOOL_BYTES,
        memory_limit: int = MEMORY_LIMIT,
        segment_bytes: int = SEGMENT_BYTES,
        mapped: bool | None = None,
    ) -> Spool:
        """A new spool under ``root``. Raises `SpoolError` when the directory cannot be used."""
        directory = root / f"{hello.run_id}-{hello.writer}"
        spool = cls(
            directory,
            Meta(hello=hello),
            disk_limit=disk_limit,
            memory_limit=memory_limit,
            segment_bytes=segment_bytes,
            mapped=mapped,
        )
        assert spool._place is not None
        try:
            directory.mkdir(parents=True)
            spool._place.hold()
            spool._place.write_meta(spool.meta)
        except OSError as error:
            spool.release()
            raise SpoolError(f"cannot write to {directory}: {error}") from error
        return spool

    @classmethod
    def open(cls, directory: Path) -> Spool:
        """What an earlier process left. Raises `SpoolError` when it is in use, or is no spool."""
        spool = cls(directory, Meta(hello=Hello(version=0, run_id=None, writer="", project="")))
        assert spool._place is not None
        try:
            spool._place.hold()
            spool.meta = spool._place.read_meta()
            spool._load()
        except (OSError, msgspec.DecodeError) as error:
            spool.release()
            raise SpoolError(f"cannot use the spool {directory}: {error}") from error
        return spool

    @property
    def queued_bytes(self) -> int:
        """Bytes not yet acknowledged, on disk and in memory."""
        return self._line.queued_bytes + self._memory.size

    @property
    def unkept(self) -> int:
        """Records not yet acknowledged that no disk has: they are lost with the process."""
        return len(self._memory)

    @property
    def thinned(self) -> int:
        """Records that gave up layer statistics to make room."""
        return self._line.thinned

    @property
    def hello(self) -> Hello:
        return self.meta.hello

    # -- the run's side: one thread at a time --

    def append(self, payload: bytes | bytearray, *, reserve: float = 1.0) -> bool:
        """Keep one record; its sequence is then `last_seq`. False: no room, nothing was kept.

        ``reserve`` multiplies the limits, so that what matters most still fits when the rest no longer does.
        """
        size = FRAME.size + len(payload)
        may_write = self.directory is not None and (not self._disk_retry_at or self._may_retry())
        if may_write and (not self._memory.size or self._return_to_disk()):
            if self._line.queued_bytes + size > self._disk_limit * reserve:
                return False
            try:
                self._append_to_disk(self.last_seq + 1, payload)
            except OSError as error:
                self._give_up_disk(error)
            else:
                self.last_seq += 1
                return True
        if not self._memory.append(self.last_seq + 1, payload, reserve):
            return False
        self.last_seq += 1
        return True

    def introduce(self, hello: Hello) -> None:
        """Replace the hello, as layouts grew; records that refer to them must be appended after."""
        self._replace_meta(hello=hello)

    def finish(self, finish: Finish) -> None:
        """The run is over: nothing is appended any more. What is in memory is given to the disk, if it works again."""
        if self.directory is not None and self._memory:
            self._disk_retry_at = 0.0
            while not self._return_to_disk() and not self._disk_retry_at:
                pass  # a piece at a time
        self._replace_meta(finish=finish)

    # -- the recorder's thread --

    def maintain(self) -> None:
        """Do ahead, or afterwards, what `append` should not have to: make the next pages and the next file, close full
        ones, and thin what waits for the server when the limit is near. Never raises."""
        if self._files is None:
            return
        last, appender = self._line.last, self._appender
        try:
            if appender is not None and last is not None and appender.path == last.path:
                appender.prepare(last.end)
            self._files.close_retired()
            is_low = last is None or appender is None or last.end > self._segment_bytes // 2
            if is_low and not self._disk_retry_at:
                self._files.prepare()
            if self.queued_bytes > self._disk_limit * THINNING_BEGINS:
                self._line.thin_oldest()
        except OSError as error:
            self.failure = error

    # -- the sender's side --

    def read(self, after: int, max_bytes: int) -> list[bytes]:
        """Encoded records from sequence ``after`` + 1 on: at least one if there is any, then up to ``max_bytes``.

        Raises `OSError` when the disk does not give them back.
        """
        if after >= self.last_seq:
            return []
        payloads = self._memory.read(after + 1, max_bytes)
        return self._line.read(after, max_bytes) if payloads is None else payloads

    def acknowledge(self, seq: int) -> None:
        """Forget every record up to and with ``seq``."""
        seq = min(seq, self.last_seq)
        if seq <= self.acknowledged:
            return
        self._memory.forget(seq)
        self._line.forget(seq)
        self.acknowledged = seq
        if self._place is not None:
            try:
                self._place.write_watermark(seq)
            except OSError as error:
                self.failure = error  # costs a resend after a crash, which the server recognises

    def rebase(self, writer: str) -> None:
        """Continue as a new ``writer`` that begins with the first unacknowledged record: the server lost its data."""
        self._replace_meta(writer=writer)

    @property
    def oldest(self) -> int:
        """First sequence that can still be read."""
        first = self._line.first
        if first is not None:
            return first.first_seq
        return self._memory.first if self._memory else self.last_seq + 1

    def release(self) -> None:
        """Close files and let other processes use the directory. The records stay."""
        if self._files is not None:
            try:
                self._close_appender()
                self._files.release()
            except OSError as error:
                self.failure = error  # what was reserved stays so until it is sent
        if self._place is not None:
            self._place.release()

    def delete(self) -> None:
        """Everything is delivered: remove the directory."""
        if self._place is not None:
            self._place.delete()
        self.release()

    # -- inside: appending --

    def _return_to_disk(self) -> bool:
        """Move some of what is in memory to the disk; a run that logs steadily would never see its memory empty.

        True when nothing is left in memory."""
        try:
            self._memory.move(self._append_to_disk, RETURN_BYTES)
        except OSError as error:
            self._give_up_disk(error)
        return not self._memory

    def _append_to_disk(self, seq: int, payload: bytes | bytearray) -> None:
        size = FRAME.size + len(payload)
        appender, last = self._appender, self._line.last
        if appender is not None and last is not None:
            if last.end < self._segment_bytes and appender.has_room(last.end, size):
                last.end = appender.append(last.end, payload)
                last.count += 1
                self._line.appended_bytes += size
                return
            self._close_appender()
        assert self._files is not None
        appender = self._files.take(seq, size)
        last = SpoolFile(appender.path, seq, start=self._line.appended_bytes)
        self._line.append(last)
        self._appender = appender
        last.end = appender.append(last.end, payload)
        last.count += 1
        self._line.appended_bytes += size

    def _close_appender(self) -> None:
        appender, self._appender = self._appender, None
        last = self._line.last
        if appender is not None and last is not None and self._files is not None:
            self._files.retire(appender, last.end)

    def _may_retry(self) -> bool:
        if self._clock() < self._disk_retry_at:
            return False
        self._disk_retry_at = 0.0
        return True

    def _give_up_disk(self, error: OSError) -> None:
        self.failure = error
        self._disk_retry_at = self._clock() + DISK_RETRY
        with contextlib.suppress(OSError):
            self._close_appender()

    # -- inside: the directory --

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
            if self._place is not None:
                try:
                    self._place.write_meta(self.meta)
                except OSError as error:
                    self.failure = error

    def _load(self) -> None:
        """What is there, made whole."""
        assert self._place is not None
        self.acknowledged, self.lost = self._line.load(self.meta.hello.started_at, self._place.read_watermark())
        last = self._line.last
        self.last_seq = self.acknowledged if last is None else max(last.last_seq, self.acknowledged)
