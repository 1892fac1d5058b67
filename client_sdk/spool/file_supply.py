"""The files that a spool writes to: creates the next one in advance and closes full ones afterwards.

Neither then happens inside `log`. The appending thread calls `take`, `retire` and `discard`; the recorder's thread
calls `prepare` and `close_retired`.
"""

from __future__ import annotations

import itertools
from collections import deque
from pathlib import Path
from typing import Final

from client_sdk.spool.appender import Appender, may_map
from client_sdk.spool.spool_file import HEADER, SUFFIX

MAX_RETIRED: Final = 4  # full files that wait for another thread to close them
SPARES: Final = "spare-*"
"""Pattern of the names of files that were created in advance."""


class FileSupply:
    """Supply of open files for the spool in one directory. Methods raise `OSError`."""

    def __init__(self, directory: Path, size: int, *, mapped: bool | None) -> None:
        """``size`` is the size of a file in bytes. ``mapped`` None maps files where the file system allows it."""
        self._directory = directory
        self._size = size
        self._mapped = mapped
        self._spare: Appender | None = None
        self._retired: deque[tuple[Appender, int]] = deque()  # (full file, offset of its end)
        self._names = map(SPARES.replace("*", "{}").format, itertools.count())

    def prepare(self) -> None:
        """Create the next file unless it exists already."""
        if self._spare is None:
            self._spare = self._create(self._size)

    def take(self, first_seq: int, size: int) -> Appender:
        """Return a file that begins with the record ``first_seq`` and has room for ``size`` bytes of frames."""
        spare, self._spare = self._spare, None
        if spare is not None and not spare.has_room(HEADER.size, size):
            self.discard(spare)
            spare = None
        appender = spare or self._create(max(self._size, HEADER.size + size))
        try:
            appender.begin(first_seq, self._directory / f"{first_seq:020d}{SUFFIX}")
        except OSError:
            self.discard(appender)
            raise
        return appender

    def retire(self, appender: Appender, end: int) -> None:
        """Have a file closed whose records end at the offset ``end``."""
        self._retired.append((appender, end))
        if len(self._retired) > MAX_RETIRED:
            self.close_retired()

    def discard(self, appender: Appender) -> None:
        """Delete a file that holds no record."""
        appender.path.unlink(missing_ok=True)
        self._retired.append((appender, 0))

    def close_retired(self) -> None:
        """Close retired files and free what was reserved after their ends."""
        while self._retired:
            appender, end = self._retired.popleft()
            appender.close(end)

    def release(self) -> None:
        """Close every file and delete the spare one."""
        spare, self._spare = self._spare, None
        if spare is not None:
            self.discard(spare)
        self.close_retired()

    def _create(self, size: int) -> Appender:
        if self._mapped is None:
            self._mapped = may_map(self._directory)
        return Appender(self._directory / next(self._names), size, mapped=self._mapped)
