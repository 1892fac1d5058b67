"""The queue between `log` and the server, on disk: append, read, acknowledge. Survives `kill -9` of the process.

Each writer has one directory under SPIKEWATCH_DIR; `client_sdk.spool.directory` describes its content. Nothing is
fsynced for a step: written bytes are in the page cache, which outlives the process. While the disk fails, new records
go to a bounded queue in memory; it is moved back to the disk when the disk works again.

Thread ownership: one thread at a time calls `append`, which the recorder's lock ensures; the sender thread calls
`read`, `acknowledge` and `rebase`; the recorder's thread calls `maintain`. None of their I/O delays `log`: see
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

SPOOL_FILE_BYTES: Final = 8 * 1024 * 1024
THINNING_BEGINS: Final = 0.95  # of the limit
MEMORY_LIMIT: Final = 64 * 1024**2  # bytes in memory while the disk fails
DISK_RETRY: Final = 10.0  # seconds before a failed disk is tried again
RETURN_BYTES: Final = 256 * 1024  # moved from memory to a disk that works again, in one `append`


class Spool:
    """The records of one writer that the server has not acknowledged. Sequences start at 1."""

    def __init__(
        self,
        directory: Path | None,
        meta: Meta,
        *,
        disk_limit: int = DEFAULT_SPOOL_BYTES,
        memory_limit: int = MEMORY_LIMIT,
        file_bytes: int = SPOOL_FILE_BYTES,
        mapped: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Initialise an empty spool; use `create` and `open` for one in a directory.

        Without a directory everything is kept in memory. ``mapped`` None maps files where the file system allows it.
        """
        self.directory = directory
        self.meta = meta
        self.last_seq = 0
        """Sequence of the last appended record."""
        self.acknowledged = 0
        """Sequence up to which the server has everything."""
        self.failure: OSError | None = None
        """Error of the disk that has not been reported yet; the recorder resets it."""
        self.lost = 0
        """Number of records that were damaged when the spool was opened."""
        self._spool_directory = None if directory is None else SpoolDirectory(directory)
        self._disk_limit = disk_limit
        self._file_bytes = file_bytes
        self._supply = None if directory is None else FileSupply(directory, file_bytes, mapped=mapped)
        self._clock = clock
        self._files = SpoolFileSequence(directory)
        self._appender: Appender | None = None  # of the last file
        self._memory = MemoryTail(memory_limit)
        self._meta_lock = threading.Lock()
        self._disk_retry_at = 0.0  # 0: the disk works

    @classmethod
    def in_memory(cls, hello: Hello, *, memory_limit: int = MEMORY_LIMIT) -> Spool:
        """Return a spool that is lost with the process, for a process that can write to no directory."""
        return cls(None, Meta(hello=hello), memory_limit=memory_limit)

    @classmethod
    def create(
        cls,
        root: Path,
        hello: Hello,
        *,
        disk_limit: int = DEFAULT_SPOOL_BYTES,
        memory_limit: int = MEMORY_LIMIT,
        file_bytes: int = SPOOL_FILE_BYTES,
        mapped: bool | None = None,
    ) -> Spool:
        """Create a new spool under ``root``. Raises `SpoolError` if the directory cannot be used."""
        directory = root / f"{hello.run_id}-{hello.writer}"
        spool = cls(
            directory,
            Meta(hello=hello),
            disk_limit=disk_limit,
            memory_limit=memory_limit,
            file_bytes=file_bytes,
            mapped=mapped,
        )
        assert spool._spool_directory is not None
        try:
            directory.mkdir(parents=True)
            spool._spool_directory.lock()
            spool._spool_directory.write_meta(spool.meta)
        except OSError as error:
            spool.release()
            raise SpoolError(f"cannot write to {directory}: {error}") from error
        return spool

    @classmethod
    def open(cls, directory: Path) -> Spool:
        """Open the spool of an earlier process. Raises `SpoolError` if it is in use or is not a spool."""
        spool = cls(directory, Meta(hello=Hello(version=0, run_id=None, writer="", project="")))
        assert spool._spool_directory is not None
        try:
            spool._spool_directory.lock()
            spool.meta = spool._spool_directory.read_meta()
            spool._load(spool._spool_directory)
        except (OSError, msgspec.DecodeError) as error:
            spool.release()
            raise SpoolError(f"cannot use the spool {directory}: {error}") from error
        return spool

    @property
    def queued_bytes(self) -> int:
        """Bytes that are not acknowledged, on disk and in memory."""
        return self._files.queued_bytes + self._memory.size

    @property
    def memory_count(self) -> int:
        """Number of unacknowledged records that are in memory only and lost with the process."""
        return len(self._memory)

    @property
    def thinned(self) -> int:
        """Number of records that lost layer statistics to make room."""
        return self._files.thinned

    @property
    def hello(self) -> Hello:
        """The hello of the writer, with every layout so far."""
        return self.meta.hello

    # -- called by the run, by one thread at a time --

    def append(self, payload: bytes | bytearray, *, reserve: float = 1.0) -> bool:
        """Keep one record, whose sequence is then `last_seq`. Returns False if there was no room.

        ``reserve`` multiplies the limits, so that essential records still fit when others no longer do.
        """
        size = FRAME.size + len(payload)
        may_write = self.directory is not None and (not self._disk_retry_at or self._may_retry())
        if may_write and (not self._memory.size or self._return_to_disk()):
            if self._files.queued_bytes + size > self._disk_limit * reserve:
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

    def update_hello(self, hello: Hello) -> None:
        """Replace the hello by one with more layouts, before records that refer to them are appended."""
        self._replace_meta(hello=hello)

    def finish(self, finish: Finish) -> None:
        """Mark the run as finished; nothing is appended afterwards.

        Records in memory are moved to the disk if it works again.
        """
        if self.directory is not None and self._memory:
            self._disk_retry_at = 0.0
            while not self._return_to_disk() and not self._disk_retry_at:
                pass  # each call moves a bounded number of bytes
        self._replace_meta(finish=finish)

    # -- called by the recorder's thread --

    def maintain(self) -> None:
        """Do what `append` should not have to do: populate pages, create the next file, close full ones, and thin.

        Thinning begins when unacknowledged records come close to the limit. Never raises.
        """
        if self._supply is None:
            return
        last, appender = self._files.last, self._appender
        try:
            if appender is not None and last is not None and appender.path == last.path:
                appender.prepare(last.end)
            self._supply.close_retired()
            is_low = last is None or appender is None or last.end > self._file_bytes // 2
            if is_low and not self._disk_retry_at:
                self._supply.prepare()
            if self.queued_bytes > self._disk_limit * THINNING_BEGINS:
                self._files.thin_oldest()
        except OSError as error:
            self.failure = error

    # -- called by the sender thread --

    def read(self, after: int, max_bytes: int) -> list[bytes]:
        """Return encoded records from sequence ``after`` + 1 on: at least one if any, then up to ``max_bytes``.

        Raises `OSError` if the disk does not return them.
        """
        if after >= self.last_seq:
            return []
        payloads = self._memory.read(after + 1, max_bytes)
        return self._files.read(after, max_bytes) if payloads is None else payloads

    def acknowledge(self, seq: int) -> None:
        """Remove every record up to and including ``seq``."""
        seq = min(seq, self.last_seq)
        if seq <= self.acknowledged:
            return
        self._memory.forget(seq)
        self._files.forget(seq)
        self.acknowledged = seq
        if self._spool_directory is not None:
            try:
                self._spool_directory.write_watermark(seq)
            except OSError as error:
                self.failure = error  # costs a resend after a crash, which the server recognises

    def rebase(self, writer: str) -> None:
        """Continue as a new ``writer`` whose first record is the first unacknowledged one: the server lost its data."""
        self._replace_meta(writer=writer)

    @property
    def oldest_seq(self) -> int:
        """Sequence of the oldest record that can still be read."""
        first = self._files.first
        if first is not None:
            return first.first_seq
        return self._memory.first if self._memory else self.last_seq + 1

    def release(self) -> None:
        """Close the files and let other processes use the directory. The records stay."""
        if self._supply is not None:
            try:
                self._close_appender()
                self._supply.release()
            except OSError as error:
                self.failure = error  # reserved blocks stay reserved until the spool is sent and deleted
        if self._spool_directory is not None:
            self._spool_directory.unlock()

    def delete(self) -> None:
        """Remove the directory, once everything is delivered."""
        if self._spool_directory is not None:
            self._spool_directory.delete()
        self.release()

    # -- internal: appending --

    def _return_to_disk(self) -> bool:
        """Move some of the records in memory to the disk, and return whether memory is empty.

        Moving only some per call bounds the time of `append`; waiting for an empty memory would take forever in a run
        that logs steadily.
        """
        try:
            self._memory.move(self._append_to_disk, RETURN_BYTES)
        except OSError as error:
            self._give_up_disk(error)
        return not self._memory

    def _append_to_disk(self, seq: int, payload: bytes | bytearray) -> None:
        size = FRAME.size + len(payload)
        appender, last = self._appender, self._files.last
        if appender is not None and last is not None:
            if last.end < self._file_bytes and appender.has_room(last.end, size):
                last.end = appender.append(last.end, payload)
                last.count += 1
                self._files.appended_bytes += size
                return
            self._close_appender()
        assert self._supply is not None
        appender = self._supply.take(seq, size)
        last = SpoolFile(appender.path, seq, start=self._files.appended_bytes)
        try:
            last.end = appender.append(last.end, payload)
        except OSError:
            # The next file has the same name. An empty one in the sequence would delete it when it is acknowledged.
            self._supply.discard(appender)
            raise
        last.count = 1
        self._files.append(last)
        self._appender = appender
        self._files.appended_bytes += size

    def _close_appender(self) -> None:
        appender, self._appender = self._appender, None
        last = self._files.last
        if appender is not None and last is not None and self._supply is not None:
            self._supply.retire(appender, last.end)

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

    # -- internal: the directory --

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
            if self._spool_directory is not None:
                try:
                    self._spool_directory.write_meta(self.meta)
                except OSError as error:
                    self.failure = error

    def _load(self, directory: SpoolDirectory) -> None:
        """Load and repair the files of an earlier process."""
        self.acknowledged, self.lost = self._files.load(self.meta.hello.started_at, directory.read_watermark())
        last = self._files.last
        self.last_seq = self.acknowledged if last is None else max(last.last_seq, self.acknowledged)
