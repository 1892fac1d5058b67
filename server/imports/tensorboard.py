"""TensorBoard event files: `Event` messages in TFRecord framing.

A folder with event files is one run, as in TensorBoard. A record consists of its length as little-endian uint64, the
masked CRC-32C of the length, the data, and the masked CRC-32C of the data. A file that a crash cut off within a record
is read up to that record, as TensorBoard does; damage before that is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as attribute
from pathlib import Path
from typing import Any, BinaryIO, Final

import google_crc32c
import numpy as np

from client_sdk.protocol import Record
from server.errors import ImportFileError
from server.imports.logged_run import LoggedRun, Note, checked_step, digest
from server.imports.message_types import (
    BOOL,
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
from server.imports.points import Points
from server.imports.record_file import LeftOut, note_truncated, opened

PATTERN: Final = "*tfevents*"
HEADER: Final = 12  # bytes
FOOTER: Final = 4  # bytes
TIME_DIGITS: Final = 10
"""Digits of the seconds since 1970 in the names of the folders of `add_hparams`."""
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
        field("metadata", 9, "Metadata"),
        one_of=(field("simple_value", 2, FLOAT), field("tensor", 8, "Tensor")),
    ),
    message("Metadata", field("plugin_data", 1, "PluginData")),
    message("PluginData", field("plugin_name", 1, STRING), field("content", 2, BYTES)),
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

# https://github.com/tensorflow/tensorboard/blob/master/tensorboard/plugins/hparams/plugin_data.proto, and struct.proto.
# A map is a list of messages with a key and a value.
_Hyperparameters = message_class(
    "tensorboard_hparams",
    message("HParamsPluginData", field("session_start_info", 3, "SessionStartInfo")),
    message("SessionStartInfo", field("hparams", 1, "Entry", repeated=True)),
    message("Entry", field("key", 1, STRING), field("value", 2, "HParam")),
    message(
        "HParam",
        one_of=(field("number_value", 2, DOUBLE), field("string_value", 3, STRING), field("bool_value", 4, BOOL)),
    ),
)
HPARAMS: Final = "hparams"
"""Name of the plugin that stores the hyperparameters of a run."""

_NUMBERS: Final = {
    1: ("<f4", "float_val"),
    2: ("<f8", "double_val"),
    3: ("<i4", "int_val"),
    9: ("<i8", "int64_val"),
    19: ("<f2", "half_val"),
}
"""Values of the enumeration `DataType` that are numbers, with their format and the field that lists their values."""


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """One scalar of an event file."""

    time: float
    step: int
    tag: str
    value: float


@dataclass(kw_only=True)
class Contents:
    """Contents of the events so far beside scalars."""

    config: dict[str, Any] = attribute(default_factory=dict)
    """Hyperparameters, as `SummaryWriter.add_hparams` and Keras store them."""


def open_folder(folder: Path, name: str, note: Note) -> LoggedRun:
    """Return the run of the event files directly in a folder. Raises `ImportFileError`.

    Hyperparameters that torch's `add_hparams` wrote into a folder of their own below it are those of this run.
    """
    files = event_files(folder)
    return _open(folder, files, hyperparameter_files(folder), name, note)


def open_file(path: Path, note: Note) -> LoggedRun:
    """Return the run of a single event file. Raises `ImportFileError`."""
    return _open(path, [path], [], path.parent.resolve().name or path.name, note)


def event_files(folder: Path) -> list[Path]:
    """Return the event files directly in a folder, oldest first."""
    return sorted(path for path in folder.glob(PATTERN) if path.is_file())


def hyperparameter_files(folder: Path) -> list[Path]:
    """Return the event files of the folders that torch's `add_hparams` made below a folder with event files."""
    return [file for path in sorted(folder.glob("*/")) if is_hyperparameters(path) for file in event_files(path)]


def is_hyperparameters(folder: Path) -> bool:
    """Return whether `add_hparams` made this folder for the run of the folder above it.

    Its name is the time in seconds, and it lies beside the event files of the run.
    """
    whole, _, fraction = folder.name.partition(".")
    is_time = whole.isdecimal() and fraction.isdecimal() and len(whole) >= TIME_DIGITS
    return is_time and bool(event_files(folder)) and bool(event_files(folder.parent))


def _open(path: Path, files: list[Path], beside: list[Path], name: str, note: Note) -> LoggedRun:
    identity = digest(files)
    found, contents = Points(), Contents()
    for file in files:
        _read(file, found, contents, note)
    for file in beside:
        dropped = Points()
        _read(file, dropped, contents, note)
        if dropped.names:
            left = f"its {len(dropped.names)} scalars are left out"
            note(f"{file.parent}: its hyperparameters are those of the run above it; {left}")

    def records() -> Iterator[tuple[int, Record]]:
        return ((0, record) for record in found.records())

    return LoggedRun(
        path=path, identity=identity, name=name, records=records, config=contents.config, tags=("tensorboard",)
    )


def _read(path: Path, points: Points, contents: Contents, note: Note) -> None:
    """Add the scalars of a file. Raises `ImportFileError`."""
    left_out = LeftOut(path, "is not a scalar", note)
    for number, data in _frames(path, note):
        for scalar in scalars_of(path, number, data, contents, left_out):
            points.add(scalar.time, scalar.step, scalar.tag, scalar.value)


def scalars_of(path: Path, number: int, data: bytes, contents: Contents, left_out: LeftOut) -> Iterator[Scalar]:
    """Yield the scalars of one event, and add what else it says to ``contents``. Raises `ImportFileError`."""
    event = parsed(_Event, data, path, number)
    for value in event.summary.value:
        plugin = value.metadata.plugin_data
        if plugin.plugin_name == HPARAMS:
            start = parsed(_Hyperparameters, plugin.content, path, number).session_start_info
            contents.config.update({entry.key: _setting(entry.value) for entry in start.hparams})
            continue
        kind = value.WhichOneof("value")
        scalar = value.simple_value if kind == "simple_value" else None
        if kind == "tensor":
            scalar = _single_number(value.tensor)
        if scalar is None:
            left_out.report(value.tag)
        else:
            step = checked_step(path, f"record {number}", event.step)
            yield Scalar(time=event.wall_time, step=step, tag=value.tag, value=scalar)


def _setting(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)


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
    number = 0
    with opened(path) as file:
        for number, data, _ in frames(path, file):
            yield number, data
        if file.read(1):
            note_truncated(path, number + 1, note)


def frames(path: Path, file: BinaryIO, number: int = 0) -> Iterator[tuple[int, bytes, int]]:
    """Yield the number, the data and the end of each complete record from the present offset of a file on.

    ``number`` is that of the record before. Afterwards the file is at the end of the last complete record. Raises
    `ImportFileError` if a checksum does not match.
    """
    start = file.tell()
    while len(header := file.read(HEADER)) == HEADER:
        number += 1
        place = f"record {number}"
        (length,) = struct.unpack_from("<Q", header)
        if _masked_crc(header[:8]) != struct.unpack_from("<I", header, 8)[0] or length > MAX_EVENT:
            what = "this is not an event file" if number == 1 else "the checksum of its length does not match"
            raise ImportFileError(path, place, what)
        data = file.read(length)
        footer = file.read(FOOTER)
        if len(footer) < FOOTER:
            break
        if _masked_crc(data) != struct.unpack("<I", footer)[0]:
            raise ImportFileError(path, place, "its checksum does not match")
        start = file.tell()
        yield number, data, start
    file.seek(start)


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _CRC_MASK) & 0xFFFFFFFF
