"""Files that consist of checksummed records, which a crash may have cut off. The formats differ in their framing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from server.errors import ImportFileError
from server.imports.logged_run import Note


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading. Raises `ImportFileError` if it cannot be opened or read within the block."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ImportFileError(path, None, error.strerror or str(error)) from error


def note_truncated(path: Path, number: int, note: Note) -> None:
    """Report that a file ends within a record, which ends the import without an error."""
    note(f"{path} breaks off in record {number}; the records before it are read")


class LeftOut:
    """Names that an import leaves out, each reported once."""

    def __init__(self, path: Path, reason: str, note: Note) -> None:
        """``reason`` completes "NAME …", for example "is not a scalar"."""
        self._path = path
        self._reason = reason
        self._note = note
        self._reported: set[str] = set()

    def report(self, name: str) -> None:
        """Report a name unless it has been reported before."""
        if name not in self._reported:
            self._reported.add(name)
            self._note(f"{self._path}: {name!r} {self._reason} and is left out")
