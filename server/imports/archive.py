"""The ZIP files that our exports make: their tables are read where they lie."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

from server.errors import ImportFileError
from server.exports.archive import HISTOGRAMS, STEPS
from server.imports.logged_run import LoggedRun, digest
from server.imports.parquet_file import read_export

SUFFIX = ".zip"
_LOCAL_HEADER = struct.Struct("<26xHH")
"""Of an entry: the lengths of its name and of what follows that, before the data."""


def open_file(path: Path) -> LoggedRun:
    """Raises `ImportFileError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
        if STEPS not in members:
            raise ImportFileError(path, None, f"there is no {STEPS} in it: this is not what an export writes")
        for name in (STEPS, HISTOGRAMS):
            if name in members and members[name].compress_type != zipfile.ZIP_STORED:
                raise ImportFileError(path, name, "it was packed again; unpack it, and import the folder")
        places = {name: _place(path, members[name]) for name in (STEPS, HISTOGRAMS) if name in members}
    except (OSError, zipfile.BadZipFile, struct.error, NotImplementedError) as error:
        raise ImportFileError(path, None, f"it cannot be read as ZIP ({error})") from error

    def steps() -> Window:
        return Window(path, *places[STEPS])

    def histograms() -> Window:
        return Window(path, *places[HISTOGRAMS])

    return read_export(path, digest([path]), steps, histograms if HISTOGRAMS in places else None)


class Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        """Raises `OSError`."""
        self._file = path.open("rb", buffering=0)
        self._start = start
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        found = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._at)]) or 0
        self._at += found
        return found

    def close(self) -> None:
        self._file.close()
        super().close()


def _place(path: Path, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the data of an entry begin, and how long they are. Raises `OSError` and `struct.error`."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return info.header_offset + _LOCAL_HEADER.size + name + extra, info.file_size
