"""The files of a spool in the order of their records: reads them, deletes acknowledged ones and thins the rest.

Thread ownership: the appending thread calls `append`, the sender thread `read` and `forget`, and the recorder's thread
`thin_oldest`. The last three share their state under a lock that `append` never takes, so that none of their I/O
delays `log`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from client_sdk.spool.repair import REWRITTEN, load_files
from client_sdk.spool.spool_file import HEADER, SpoolFile
from client_sdk.spool.thinning import thin

MAX_PASSES: Final = 64  # of thinning over one file; nothing is left to remove long before


class SpoolFileSequence:
    """The spool files of one writer, whose record sequences are consecutive."""

    def __init__(self, directory: Path | None) -> None:
        self.thinned = 0
        """Number of records that lost layer statistics to make room."""
        self.appended_bytes = 0
        """Bytes ever appended, payloads and framing."""
        self._directory = directory
        self._files: list[SpoolFile] = []
        self._lock = threading.Lock()
        self._acknowledged = 0
        self._acknowledged_bytes = 0
        self._thinned_bytes = 0  # in files that are not acknowledged
        self._cursor: tuple[int, SpoolFile, int] | None = None  # next sequence to read, its file and its offset
        self._marks: deque[tuple[int, int]] = deque()  # (last sequence of a read, bytes up to it)

    @property
    def queued_bytes(self) -> int:
        """Bytes on the disk that are not acknowledged."""
        return max(0, self.appended_bytes - self._acknowledged_bytes - self._thinned_bytes)

    @property
    def first(self) -> SpoolFile | None:
        """The file with the oldest record, or None if there is no file."""
        files = self._files
        return files[0] if files else None

    @property
    def last(self) -> SpoolFile | None:
        """The file that is appended to, or None if there is no file."""
        files = self._files
        return files[-1] if files else None

    def load(self, started_at: float, acknowledged: int) -> tuple[int, int]:
        """Read the files of an earlier process: cut torn ends and fill holes so that sequences are consecutive.

        ``acknowledged`` is the stored watermark, ``started_at`` the time of records that fill a hole. Returns the last
        acknowledged sequence and the number of records that replace lost ones. Raises `OSError`, and
        `msgspec.DecodeError` if a payload is not a record.
        """
        assert self._directory is not None
        self._files, lost = load_files(self._directory, started_at, acknowledged)
        if self._files:
            last = self._files[-1]
            self.appended_bytes = last.bytes_before(last.end)
            acknowledged = max(acknowledged, self._files[0].first_seq - 1)
        self._acknowledged = acknowledged
        self._acknowledged_bytes = self._bytes_up_to(acknowledged)
        return acknowledged, lost

    def append(self, file: SpoolFile) -> None:
        """Add a new file, whose first sequence follows the last record."""
        self._files.append(file)

    def read(self, after: int, max_bytes: int) -> list[bytes]:
        """Return encoded records from sequence ``after`` + 1 on: at least one, then up to ``max_bytes``.

        Raises `OSError` if the disk does not return them.
        """
        with self._lock:
            seq = after + 1
            if self._cursor is not None and self._cursor[0] == seq:
                _, file, offset = self._cursor
            else:
                file = self._file_of(seq)
                offset = file.locate(seq)
                self._marks.clear()
            if offset >= file.end:
                file, offset = self._file_of(seq), HEADER.size
            payloads, offset = file.read(offset, max_bytes)
            self._cursor = (seq + len(payloads), file, offset)
            self._marks.append((seq + len(payloads) - 1, file.bytes_before(offset)))
            return payloads

    def forget(self, seq: int) -> None:
        """Mark every record up to and including ``seq`` as acknowledged, and delete files that hold nothing else."""
        with self._lock:
            self._acknowledged_bytes = self._bytes_up_to(seq)
            self._acknowledged = seq
            while len(self._files) > 1 and self._files[0].last_seq <= seq:
                self._files.pop(0).path.unlink(missing_ok=True)
            self._count_thinned()

    def thin_oldest(self) -> None:
        """Remove every other block from one file: the oldest of those that were thinned least.

        Files that the sender has begun to read are left alone. Raises `OSError`; that file is then not thinned again.
        """
        assert self._directory is not None
        with self._lock:
            reading = self._acknowledged + 1 if self._cursor is None else self._cursor[0]
            waiting = [file for file in self._files[:-1] if file.first_seq >= reading and file.passes < MAX_PASSES]
        if not waiting:
            return
        file = min(waiting, key=lambda candidate: candidate.passes)
        try:
            payloads, changed = thin(file.read(HEADER.size, file.end)[0])
            file.passes = file.passes + 1 if changed else MAX_PASSES
            if changed:
                self._replace(file, payloads, self._directory / REWRITTEN)
                self.thinned += changed
        except FileNotFoundError:
            return  # the sender has reached the file in the meantime, so that the server has it
        except OSError:
            file.passes = MAX_PASSES
            raise
        except msgspec.DecodeError as error:
            file.passes = MAX_PASSES
            raise OSError(str(error)) from error

    def _replace(self, file: SpoolFile, payloads: list[bytes], temporary: Path) -> None:
        """Replace the content of ``file`` by ``payloads``, unless the sender has begun to read it. Raises `OSError`."""
        end = file.rewrite(payloads, temporary)
        with self._lock:
            if self._cursor is not None and self._cursor[0] > file.first_seq:
                raise FileNotFoundError(f"{file.path} is being sent")
            os.replace(temporary, file.path)
            file.saved += file.end - end
            file.end = end
            self._count_thinned()

    # -- The lock must be held by the caller. --

    def _file_of(self, seq: int) -> SpoolFile:
        for file in self._files:
            if file.first_seq <= seq <= file.last_seq:
                return file
        raise OSError(f"record {seq} is not in the spool {self._directory}")

    def _bytes_up_to(self, seq: int) -> int:
        """Return the bytes of the records up to and including ``seq``, thinned ones as they were appended."""
        while self._marks and self._marks[0][0] <= seq:
            last, size = self._marks.popleft()
            if last == seq:
                return size
        for file in self._files:
            if seq < file.first_seq:
                return file.start
            if seq <= file.last_seq:
                return file.bytes_before(file.locate(seq + 1))
        return self._files[-1].bytes_before(self._files[-1].end) if self._files else 0

    def _count_thinned(self) -> None:
        self._thinned_bytes = sum(file.saved for file in tuple(self._files) if file.start >= self._acknowledged_bytes)
