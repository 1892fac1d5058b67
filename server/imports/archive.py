"""Import of the ZIP files that an export writes, whose tables are read in place, without unpacking."""

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
_BEGINNING = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<26xHH")
"""End of an entry's header: the lengths of its name and of its extra field, which precede the data."""


def open_file(path: Path) -> LoggedRun:
    """Return the run of an archive. Raises `ImportFileError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
        if STEPS not in members:
            raise ImportFileError(path, None, f"there is no {STEPS} in it; only archives of an export can be imported")
        for name in (STEPS, HISTOGRAMS):
            if name in members and members[name].compress_type != zipfile.ZIP_STORED:
                raise ImportFileError(path, name, "it has been compressed again; unpack it, and import the folder")
        extents = {name: _extent(path, members[name]) for name in (STEPS, HISTOGRAMS) if name in members}
    except (OSError, zipfile.BadZipFile, struct.error, NotImplementedError) as error:
        if isinstance(error, zipfile.BadZipFile) and is_cut_off(path):
            raise ImportFileError(
                path,
                None,
                "it cannot be read as ZIP: it was cut off, and its end is missing; copy or download it again",
            ) from error
        raise ImportFileError(path, None, f"it cannot be read as ZIP ({error})") from error

    def steps() -> FileSlice:
        return FileSlice(path, *extents[STEPS])

    def histograms() -> FileSlice:
        return FileSlice(path, *extents[HISTOGRAMS])

    return read_export(path, digest([path]), steps, histograms if HISTOGRAMS in extents else None)


def is_cut_off(path: Path) -> bool:
    """Return whether a file begins as a ZIP file, whose directory is at its end."""
    try:
        with path.open("rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False


class FileSlice(io.RawIOBase):
    """Part of a file that can be read like a file."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        """Open the ``size`` bytes of a file from ``start`` on. Raises `OSError`."""
        self._file = path.open("rb", buffering=0)
        self._start = start
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset within the slice, and return it."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        """Return the current offset within the slice."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer up to the end of the slice, and return the number of bytes."""
        self._file.seek(self._start + self._at)
        found = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._at)]) or 0
        self._at += found
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _extent(path: Path, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Return the offset and the size of an entry's data. Raises `OSError` and `struct.error`."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return info.header_offset + _LOCAL_HEADER.size + name + extra, info.file_size
