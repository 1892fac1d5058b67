"""TensorBoard event files: `Event` messages in TFRecord framing.

A folder with event files is one run, as in TensorBoard. A record consists of its length as little-endian uint64, the
masked CRC-32C of the length, the data, and the masked CRC-32C of the data. A file that a crash cut off within a record
is read up to that record, as TensorBoard does; damage before that is an error.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np

from client_sdk.protocol import Record
from server.errors import ImportFileError
from server.imports.logged_run import LoggedRun, Note, checked_step, digest
from server.imports.message_types import (
    BYTES,
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    STRING,
    field,
    message,
    message_class,
    parsed,
)
from server.imports.record_file import LeftOut, note_truncated, opened

PATTERN: Final = "*tfevents*"
HEADER: Final = 12  # bytes
FOOTER: Final = 4  # bytes
POINTS_AT_ONCE: Final = 65_536
MAX_EVENT: Final = 1024 * 1024 * 1024  # bytes; a greater length is damage

_CRC_MASK: Final = 0xA282EAD8

# https://github.com/tensorflow/tensorboard/tree/master/tensorboard/compat/proto: event, summary and tensor.proto
_Event = message_class(
    "tensorboard",
    message(
        "Event",
        field("wall_time", 1, DOUBLE),
        field("step", 2, INT64),
        field("summary", 5, "Summary"),
    ),
    message("Summary", field("value", 1, "Value", repeated=True)),
    message(
        "Value",
        field("tag", 1, STRING),
        one_of=(field("simple_value", 2, FLOAT), field("tensor", 8, "Tensor")),
    ),
    message(
        "Tensor",
        field("dtype", 1, INT32),
        field("tensor_shape", 2, "Shape"),
        field("tensor_content", 4, BYTES),
        field("float_val", 5, FLOAT, repeated=True),
        field("double_val", 6, DOUBLE, repeated=True),
        field("int_val", 7, INT32, repeated=True),
        field("int64_val", 10, INT64, repeated=True),
        field("half_val", 13, INT32, repeated=True),
    ),
    message("Shape", field("dim", 2, "Dimension", repeated=True)),
    message("Dimension", field("size", 1, INT64)),
)

_NUMBERS: Final = {
    1: ("<f4", "float_val"),
    2: ("<f8", "double_val"),
    3: ("<i4", "int_val"),
    9: ("<i8", "int64_val"),
    19: ("<f2", "half_val"),
}
"""Values of the enumeration `DataType` that are numbers, with their format and the field that lists their values."""


class _Points:
    """Scalars in the order in which they were logged, 28 bytes each, because a run may have tens of millions."""

    def __init__(self) -> None:
        self.times = array("d")
        self.steps = array("q")
        self.tags = array("i")
        """Positions of the points' tags in `names`."""
        self.values = array("d")
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def add(self, time: float, step: int, tag: str, value: float) -> None:
        """Append a scalar."""
        number = self._numbers.get(tag)
        if number is None:
            number = self._numbers[tag] = len(self.names)
            self.names.append(tag)
        self.times.append(time)
        self.steps.append(step)
        self.tags.append(number)
        self.values.append(value)


def open_folder(folder: Path, name: str, note: Note) -> LoggedRun:
    """Return the run of the event files directly in a folder. Raises `ImportFileError`."""
    files = sorted(path for path in folder.glob(PATTERN) if path.is_file())
    return _open(folder, files, name, note)


def open_file(path: Path, note: Note) -> LoggedRun:
    """Return the run of a single event file. Raises `ImportFileError`."""
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
    """Merge the points of one attempt and step into a record; a tag that occurs twice there starts a second record.

    A training that resumed logs earlier steps again. Tags may count differently, one in steps and one in epochs, so
    only a tag that goes back behind its own last step starts an attempt, and only once for all tags of the restart.
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
    current, time = (-1, -1), 0.0
    for start in range(0, len(order), POINTS_AT_ONCE):
        for at in order[start : start + POINTS_AT_ONCE].tolist():
            key = (attempts[at], points.steps[at])
            tag = points.names[points.tags[at]]
            if key != current or tag in scalars:
                if scalars:
                    yield Record(step=current[1], time=time, scalars=scalars)
                scalars, current, time = {}, key, points.times[at]
            scalars[tag] = points.values[at]
    if scalars:
        yield Record(step=current[1], time=time, scalars=scalars)


def _read(path: Path, points: _Points, note: Note) -> None:
    """Add the scalars of a file. Raises `ImportFileError`."""
    left_out = LeftOut(path, "is not a scalar", note)
    for number, data in _frames(path, note):
        event = parsed(_Event, data, path, number)
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            scalar = value.simple_value if kind == "simple_value" else None
            if kind == "tensor":
                scalar = _single_number(value.tensor)
            if scalar is None:
                left_out.report(value.tag)
            else:
                points.add(event.wall_time, checked_step(path, f"record {number}", event.step), value.tag, scalar)


def _single_number(tensor: Any) -> float | None:
    """Return the number in a tensor with one element, or None for any other tensor."""
    elements = 1
    for dimension in tensor.tensor_shape.dim:
        elements *= dimension.size
    if tensor.dtype not in _NUMBERS or elements != 1:
        return None
    form, listed = _NUMBERS[tensor.dtype]
    if len(tensor.tensor_content) == np.dtype(form).itemsize:
        return float(np.frombuffer(tensor.tensor_content, form)[0])
    if tensor.tensor_content:
        return None
    values = getattr(tensor, listed)
    if not values:
        return 0.0  # protobuf does not write zeros
    if listed == "half_val":
        return float(np.array([values[0]], np.uint16).view(np.float16)[0])
    return float(values[0])


def _frames(path: Path, note: Note) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the data of each record. Raises `ImportFileError` if a checksum does not match."""
    with opened(path) as file:
        number = 0
        while header := file.read(HEADER):
            number += 1
            place = f"record {number}"
            if len(header) < HEADER:
                return note_truncated(path, number, note)
            (length,) = struct.unpack_from("<Q", header)
            if _masked_crc(header[:8]) != struct.unpack_from("<I", header, 8)[0] or length > MAX_EVENT:
                what = "this is not an event file" if number == 1 else "the checksum of its length does not match"
                raise ImportFileError(path, place, what)
            data = file.read(length)
            footer = file.read(FOOTER)
            if len(footer) < FOOTER:
                return note_truncated(path, number, note)
            if _masked_crc(data) != struct.unpack("<I", footer)[0]:
                raise ImportFileError(path, place, "its checksum does not match")
            yield number, data
    return None


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _CRC_MASK) & 0xFFFFFFFF
