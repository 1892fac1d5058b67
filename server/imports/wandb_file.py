"""W&B's ``.wandb`` files: `Record` messages in the log framing of LevelDB. The history and the configuration are read.

A file begins with ``:W&B``, 0xBEE1 and a version. Blocks of 32 KiB hold chunks, each with a CRC-32 (of its type and
data), a length and a type: the whole of a record, or its first, middle or last part. A file that was cut off is read up
to the incomplete record.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from client_sdk.protocol import Record
from server.errors import ImportFileError
from server.imports import message_types as types
from server.imports.entry import Entry
from server.imports.logged_run import LoggedRun, Note, checked_step, digest
from server.imports.message_types import message, message_class, parsed
from server.imports.record_file import LeftOut, note_truncated, opened

SUFFIX: Final = ".wandb"
IDENT: Final = b":W&B\xe1\xbe"
BLOCK: Final = 32_768  # bytes
HEADER: Final = 7  # bytes, of the file and of a chunk alike
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4

# https://github.com/wandb/wandb/blob/main/wandb/proto/wandb_internal.proto
_Record = message_class(
    "wandb_internal",
    message(
        "Record",
        types.field("history", 2, "History"),
        types.field("config", 5, "Config"),
        types.field("run", 17, "Run"),
        types.field("exit", 18, "Exit"),
    ),
    message("History", types.field("item", 1, "Item", repeated=True), types.field("step", 2, "Step")),
    message("Step", types.field("num", 1, types.INT64)),
    message("Config", types.field("update", 1, "Item", repeated=True)),
    message(
        "Run",
        types.field("project", 3, types.STRING),
        types.field("config", 4, "Config"),
        types.field("display_name", 8, types.STRING),
        types.field("tags", 10, types.STRING, repeated=True),
    ),
    message("Exit", types.field("exit_code", 1, types.INT32)),
    message(
        "Item",
        types.field("key", 1, types.STRING),
        types.field("nested_key", 2, types.STRING, repeated=True),
        one_of=(
            types.field("value_int", 5, types.INT64),
            types.field("value_double", 6, types.DOUBLE),
            types.field("value_text", 8, types.STRING),
            types.field("value_json", 16, types.STRING),
        ),
    ),
)


@dataclass(kw_only=True)
class About:
    """Description of the run."""

    name: str | None = None
    project: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    """Exit code of the training, None as long as it runs."""


def open_file(path: Path, note: Note) -> LoggedRun:
    """Return the run of a ``.wandb`` file. Raises `ImportFileError`."""
    about = About()
    silent = LeftOut(path, "", lambda _: None)
    for number, data in _complete(path, note):
        take(path, number, data, about, silent)

    def records() -> Iterator[tuple[int, Record]]:
        left_out = LeftOut(path, "is not a number", note)
        for number, data in _complete(path, lambda _: None):
            entry = take(path, number, data, About(), left_out)
            if entry is not None:
                yield 0, Record(step=entry.step, time=entry.time or 0.0, scalars=entry.scalars)

    return LoggedRun(
        path=path,
        identity=digest([path]),
        name=about.name or path.stem,
        records=records,
        project=about.project,
        config=about.config,
        tags=("wandb", *about.tags),
        state="crashed" if about.exit_code else "finished",
    )


def take(path: Path, number: int, data: bytes, about: About, left_out: LeftOut) -> Entry | None:
    """Return the scalars of a record, or None, and add what it says of the run to ``about``.

    Raises `ImportFileError`.
    """
    record = parsed(_Record, data, path, number)
    if record.HasField("run"):
        run = record.run
        about.project = run.project or about.project
        about.name = run.display_name or about.name
        about.tags = list(dict.fromkeys([*about.tags, *run.tags]))
        _update(about.config, run.config)
    if record.HasField("config"):
        _update(about.config, record.config)
    if record.HasField("exit"):
        about.exit_code = record.exit.exit_code
    time, scalars = None, {}
    for item in record.history.item:
        name, value = _name(item), _value(item)
        if name == "_timestamp" and isinstance(value, int | float):
            time = float(value)
        if name.startswith("_"):
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            scalars[name] = float(value)
        else:
            left_out.report(name)
    if not scalars:
        return None
    return Entry(step=checked_step(path, f"record {number}", record.history.step.num), scalars=scalars, time=time)


def _update(config: dict[str, Any], message: Any) -> None:
    for item in message.update:
        name = _name(item)
        if not name.startswith("_"):
            config[name] = _value(item)


def _name(item: Any) -> str:
    """Return the name of an item; nested keys are joined by dots."""
    return str(item.key or ".".join(item.nested_key))


def _value(item: Any) -> Any:
    kind = item.WhichOneof("value")
    if kind is None:
        return None
    value = getattr(item, kind)
    return _json(value) if kind in ("value_text", "value_json") else value


def _json(text: str) -> Any:
    # Python writes these words for numbers that JSON does not have.
    special = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}.get(text)
    try:
        return special if special is not None else msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None  # a structure that contains such a word, and therefore not a number


def _complete(path: Path, note: Note) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the data of each record. Raises `ImportFileError` if a checksum does not match."""
    number = 0
    with opened(path) as file:
        if not file.read(HEADER).startswith(IDENT):
            raise ImportFileError(path, None, "this is not a .wandb file")
        file.seek(0)
        for number, data, _ in frames(path, file):
            yield number, data
        if file.read(1):
            note_truncated(path, number + 1, note)


def frames(path: Path, file: BinaryIO, number: int = 0) -> Iterator[tuple[int, bytes, int]]:
    """Yield the number, the data and the end of each complete record from the present offset of a file on.

    ``number`` is that of the record before. Afterwards the file is at the end of the last complete record. Raises
    `ImportFileError` if a checksum does not match.
    """
    start, parts = file.tell(), b""
    if start == 0:
        ident = file.read(HEADER)
        if len(ident) == HEADER and not ident.startswith(IDENT):
            raise ImportFileError(path, None, "this is not a .wandb file")
        start = len(ident) if len(ident) == HEADER else 0
    while True:
        left = BLOCK - file.tell() % BLOCK
        if left < HEADER:
            file.read(left)
        header = file.read(HEADER)
        if len(header) < HEADER:
            break
        crc, length, kind = struct.unpack("<IHB", header)
        data = file.read(length)
        if len(data) < length:
            break
        place = f"record {number + 1}"
        if zlib.crc32(data, zlib.crc32(bytes([kind]))) != crc:
            raise ImportFileError(path, place, "its checksum does not match")
        if kind in (FULL, FIRST):
            parts = b""
        elif kind not in (MIDDLE, LAST):
            raise ImportFileError(path, place, f"it has a chunk of the unknown type {kind}")
        parts += data
        if kind in (FULL, LAST):
            number, start = number + 1, file.tell()
            yield number, parts, start
    file.seek(start)
