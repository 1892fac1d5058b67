"""TensorBoard's event files: TFRecord framing around `Event` messages.

A folder with event files is one run, as it is for TensorBoard. A record of the framing is a little-endian uint64, the
length, its masked CRC-32C, the data, and the data's masked CRC-32C. A file that a crash cut off in the middle of a
record is read up to there, as TensorBoard does; damage in the middle is an error.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from client_sdk.protocol import Record
from server.errors import ImportFileError
from server.imports.logged_run import LoggedRun, Note, checked_step, digest
from server.imports.protobuf import fields, first_varint, float32, float64, signed, submessage, text

PATTERN = "*tfevents*"
HEADER = 12  # bytes
FOOTER = 4
TOGETHER = 65_536  # points whose order is looked up at once
MAX_EVENT = 1024 * 1024 * 1024  # bytes; a longer one is damage

_MASK = 0xA282EAD8
_FLOAT, _DOUBLE, _INT32, _INT64, _HALF = 1, 2, 3, 9, 19
"""Numbers of `DataType`."""


class _Points:
    """Scalars as they were logged, 28 bytes each: a run may have tens of millions."""

    def __init__(self) -> None:
        self.times = array("d")
        self.steps = array("q")
        self.tags = array("i")
        """Which of `names`."""
        self.values = array("d")
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def add(self, time: float, step: int, tag: str, value: float) -> None:
        number = self._numbers.get(tag)
        if number is None:
            number = self._numbers[tag] = len(self.names)
            self.names.append(tag)
        self.times.append(time)
        self.steps.append(step)
        self.tags.append(number)
        self.values.append(value)


def open_folder(folder: Path, name: str, note: Note) -> LoggedRun:
    """The run of a folder's own event files. Raises `ImportFileError`."""
    files = sorted(path for path in folder.glob(PATTERN) if path.is_file())
    return _open(folder, files, name, note)


def open_file(path: Path, note: Note) -> LoggedRun:
    """One event file alone. Raises `ImportFileError`."""
    return _open(path, [path], path.parent.resolve().name or path.name, note)


def _open(path: Path, files: list[Path], name: str, note: Note) -> LoggedRun:
    identity = digest(files)
    found = _Points()
    for file in files:
        _read(file, found, note)

    def records() -> Iterator[tuple[int, Record]]:
        return ((0, record) for record in _records(found))

    return LoggedRun(path=path, identity=identity, name=name, records=records, tags=("tensorboard",))


def _records(points: _Points) -> Iterator[Record]:
    """Points of one attempt and step together, by step; a tag that comes twice there makes a second record.

    A training that resumed steps back. Tags may count differently (one by steps, one by epochs), so only a tag that
    steps back behind itself begins a new attempt, and only once for all the tags of the restart.
    """
    attempts = array("q")
    last: dict[int, tuple[int, int]] = {}
    attempt = 0
    for tag, step in zip(points.tags, points.steps, strict=True):
        before = last.get(tag)
        if before is not None and step < before[1] and before[0] == attempt:
            attempt += 1
        last[tag] = (attempt, step)
        attempts.append(attempt)
    order = np.lexsort((np.array(points.steps, dtype=np.int64), np.array(attempts, dtype=np.int64)))
    scalars: dict[str, float] = {}
    place, time = (-1, -1), 0.0
    for start in range(0, len(order), TOGETHER):
        for at in order[start : start + TOGETHER].tolist():
            here = (attempts[at], points.steps[at])
            tag = points.names[points.tags[at]]
            if here != place or tag in scalars:
                if scalars:
                    yield Record(step=place[1], time=time, scalars=scalars)
                scalars, place, time = {}, here, points.times[at]
            scalars[tag] = points.values[at]
    if scalars:
        yield Record(step=place[1], time=time, scalars=scalars)


def _read(path: Path, points: _Points, note: Note) -> None:
    """Add what a file holds. Raises `ImportFileError`."""
    left_out: set[str] = set()
    for number, data in _frames(path, note):
        place = f"record {number}"
        try:
            wall_time, step, summary = 0.0, 0, b""
            for field, _, value in fields(data):
                if field == 1:
                    wall_time = float64(value)
                elif field == 2:
                    step = signed(value)
                elif field == 5:
                    summary = submessage(value)
            for field, _, value in fields(summary):
                if field != 1:
                    continue
                tag, scalar = _value(submessage(value))
                if scalar is not None:
                    points.add(wall_time, checked_step(path, place, step), tag, scalar)
                elif tag not in left_out:
                    left_out.add(tag)
                    note(f"{path}: {tag!r} is no scalar and is left out")
        except ValueError as error:
            raise ImportFileError(path, place, f"it is no event ({error})") from error


def _value(data: bytes) -> tuple[str, float | None]:
    tag, scalar = "", None
    for field, _, value in fields(data):
        if field == 1:
            tag = text(value)
        elif field == 2:
            scalar = float32(value)
        elif field == 8:
            scalar = _tensor(submessage(value))
    return tag, scalar


def _tensor(data: bytes) -> float | None:
    """The number in a tensor of one element, None for any other."""
    kind, content, elements = 0, b"", 1
    listed: float | None = None
    for field, _, value in fields(data):
        if field == 1:
            kind = first_varint(value)
        elif field == 2:
            for number, _, dim in fields(submessage(value)):
                if number == 2:
                    elements *= sum(signed(size) for at, _, size in fields(submessage(dim)) if at == 1)
        elif field == 4:
            content = submessage(value)
        elif field == 5:
            listed = float32(value)
        elif field == 6:
            listed = float64(value)
        elif field in (7, 10):
            listed = float(signed(first_varint(value)))
        elif field == 13:
            listed = float(np.array([first_varint(value)], np.uint16).view(np.float16)[0])
    form = {_FLOAT: "<f4", _DOUBLE: "<f8", _INT32: "<i4", _INT64: "<i8", _HALF: "<f2"}.get(kind)
    if form is None or elements != 1:
        return None
    if len(content) == np.dtype(form).itemsize:
        return float(np.frombuffer(content, form)[0])
    return 0.0 if listed is None and not content else listed


def _frames(path: Path, note: Note) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while header := file.read(HEADER):
                number += 1
                place = f"record {number}"
                if len(header) < HEADER:
                    note(f"{path} breaks off in record {number}; the records before it are read")
                    return
                (length,) = struct.unpack_from("<Q", header)
                if _masked(header[:8]) != struct.unpack_from("<I", header, 8)[0] or length > MAX_EVENT:
                    what = "this is no event file" if number == 1 else "the checksum of its length does not match"
                    raise ImportFileError(path, place, what)
                data = file.read(length)
                footer = file.read(FOOTER)
                if len(footer) < FOOTER:
                    note(f"{path} breaks off in record {number}; the records before it are read")
                    return
                if _masked(data) != struct.unpack("<I", footer)[0]:
                    raise ImportFileError(path, place, "its checksum does not match")
                yield number, data
    except OSError as error:
        raise ImportFileError(path, None, error.strerror or str(error)) from error


def _masked(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF
