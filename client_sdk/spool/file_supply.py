"""The files that a spool writes to: the next one made in advance, full ones closed afterwards.

Owns their making and closing, so that neither happens inside `log`. `take` and `retire` are called by the appending
thread; `prepare` and `close_retired` by the recorder's.
"""

from __future__ import annotations

import itertools
from collections import deque
from pathlib import Path
from typing import Final

from client_sdk.spool.appender import Appender, may_map
from client_sdk.spool.spool_file import HEADER, SUFFIX

MAX_RETIRED: Final = 4  # full files that wait to be closed by somebody else
SPARES: Final = "spare-*"


class FileSupply:
    """For one directory. Methods raise `OSError`."""

    def __init__(self, directory: Path, size: int, *, mapped: bool | None) -> None:
        """``size``: bytes of a file. ``mapped`` None: where the file system allows it."""
        self._directory = directory
        self._size = size
        self._mapped = mapped
        self._spare: Appender | None = None
        self._retired: deque[tuple[Appender, int]] = deque()  # with their ends
        self._names = map(SPARES.replace("*", "{}").format, itertools.count())

    def prepare(self) -> None:
        """Make the next file, unless it is there."""
        if self._spare is None:
            self._spare = self._make(self._size)

    def take(self, first_seq: int, size: int) -> Appender:
        """A file that begins with the record ``first_seq``, with room for at least ``size`` bytes of frames."""
        spare, self._spare = self._spare, None
        if spare is not None and not spare.has_room(HEADER.size, size):
            self._discard(spare)
            spare = None
        appender = spare or self._make(max(self._size, HEADER.size + size))
        try:
            appender.begin(first_seq, self._directory / f"{first_seq:020d}{SUFFIX}")
        except OSError:
            self._discard(appender)
            raise
        return appender

    def retire(self, appender: Appender, end: int) -> None:
        """Have a file closed that is full up to ``end``."""
        self._retired.append((appender, end))
        if len(self._retired) > MAX_RETIRED:
            self.close_retired()

    def close_retired(self) -> None:
        """Close full files, and give back what was reserved after their ends."""
        while self._retired:
            appender, end = self._retired.popleft()
            appender.close(end)

    def release(self) -> None:
        """Close everything; the spare is removed."""
        spare, self._spare = self._spare, None
        if spare is not None:
            self._discard(spare)
        self.close_retired()

    def _make(self, size: int) -> Appender:
        if self._mapped is None:
            self._mapped = may_map(self._directory)
        return Appender(self._directory / next(self._names), size, mapped=self._mapped)

    def _discard(self, appender: Appender) -> None:
        """A file that holds nothing."""
        appender.path.unlink(missing_ok=True)
        self._retired.append((appender, 0))
