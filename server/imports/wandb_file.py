"""W&B's ``.wandb`` files: LevelDB's log framing around `Record` messages, of which the history is read.

The file begins with ``:W&B``, 0xBEE1 and a version. Blocks of 32 KiB hold chunks, each a CRC-32 (of the type and the
data), the length and the type: whole, first, middle or last of a record. A file that breaks off is read up to there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from client_sdk.protocol import Record
from server.errors import ImportFileError
from server.imports.logged_run import LoggedRun, Note, checked_step, digest
from server.imports.protobuf import Value, fields, float64, signed, submessage, text

SUFFIX = ".wandb"
IDENT = b":W&B\xe1\xbe"
BLOCK = 32_768  # bytes
HEADER = 7  # bytes, of the file and of a chunk alike
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4

_HISTORY, _CONFIG, _RUN, _EXIT = 2, 5, 17, 18
"""Fields of `Record`."""


@dataclass(kw_only=True)
class _About:
    name: str | None = None
    project: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def open_file(path: Path, note: Note) -> LoggedRun:
    """Raises `ImportFileError`."""
    about = _about(path, note)

    def records() -> Iterator[tuple[int, Record]]:
        return ((0, record) for record in _history(path, note))

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


def _about(path: Path, note: Note) -> _About:
    about = _About()
    for number, data in _frames(path, note):
        try:
            for kind, _, value in fields(data):
                if kind == _RUN:
                    _read_run(submessage(value), about)
                elif kind == _CONFIG:
                    _read_config(submessage(value), about)
                elif kind == _EXIT:
                    about.exit_code = next((signed(code) for at, _, code in fields(submessage(value)) if at == 1), 0)
        except ValueError as error:
            raise ImportFileError(path, f"record {number}", f"it cannot be read ({error})") from error
    return about


def _read_run(data: bytes, about: _About) -> None:
    for at, _, value in fields(data):
        if at == 3:
            about.project = text(value)
        elif at == 4:
            _read_config(submessage(value), about)
        elif at == 8:
            about.name = text(value)
        elif at == 10 and (tag := text(value)) not in about.tags:
            about.tags.append(tag)


def _read_config(data: bytes, about: _About) -> None:
    for at, _, value in fields(data):
        if at == 1:
            name, content = _item(submessage(value))
            if not name.startswith("_"):
                about.config[name] = content


def _history(path: Path, note: Note) -> Iterator[Record]:
    left_out: set[str] = set()
    for number, data in _frames(path, lambda _: None):
        place = f"record {number}"
        try:
            for kind, _, value in fields(data):
                if kind != _HISTORY:
                    continue
                step, time, scalars = 0, 0.0, {}
                for at, _, part in fields(submessage(value)):
                    if at == 2:
                        step = next((signed(found) for n, _, found in fields(submessage(part)) if n == 1), 0)
                    if at != 1:
                        continue
                    name, content = _item(submessage(part))
                    if name == "_timestamp" and isinstance(content, int | float):
                        time = float(content)
                    if name.startswith("_"):
                        continue
                    if isinstance(content, int | float) and not isinstance(content, bool):
                        scalars[name] = float(content)
                    elif name not in left_out:
                        left_out.add(name)
                        note(f"{path}: {name!r} is no number and is left out")
                if scalars:
                    yield Record(step=checked_step(path, place, step), time=time, scalars=scalars)
        except ValueError as error:
            raise ImportFileError(path, place, f"it cannot be read ({error})") from error


def _item(data: bytes) -> tuple[str, Any]:
    """Name and value of an item of the history or the configuration. Raises `ValueError`."""
    name, nested = "", []
    content: Any = None
    for at, _, value in fields(data):
        if at == 1:
            name = text(value)
        elif at == 2:
            nested.append(text(value))
        elif at in (5, 6):
            content = signed(value) if at == 5 else float64(value)
        elif at in (8, 16):
            content = _json(value)
    return name or ".".join(nested), content


def _json(value: Value) -> Any:
    written = text(value)
    # As Python writes them; JSON has no words for these.
    special = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}.get(written)
    try:
        return special if special is not None else msgspec.json.decode(written)
    except msgspec.DecodeError:
        return None  # a structure with a NaN inside; no number in any case


def _frames(path: Path, note: Note) -> Iterator[tuple[int, bytes]]:
    """(number, record), whole."""
    try:
        with path.open("rb") as file:
            if not file.read(HEADER).startswith(IDENT):
                raise ImportFileError(path, None, "this is no .wandb file")
            number, parts = 1, b""
            while True:
                left = BLOCK - file.tell() % BLOCK
                if left < HEADER:
                    file.read(left)
                header = file.read(HEADER)
                if not header:
                    break
                crc, length, kind = struct.unpack("<IHB", header) if len(header) == HEADER else (0, 1, 0)
                data = file.read(length)
                if len(header) < HEADER or len(data) < length:
                    note(f"{path} breaks off in record {number}; the records before it are read")
                    return
                if zlib.crc32(data, zlib.crc32(bytes([kind]))) != crc:
                    raise ImportFileError(path, f"record {number}", "its checksum does not match")
                if kind in (FULL, FIRST):
                    parts = b""
                elif kind not in (MIDDLE, LAST):
                    raise ImportFileError(path, f"record {number}", f"a chunk of the unknown type {kind}")
                parts += data
                if kind in (FULL, LAST):
                    yield number, parts
                    number += 1
    except OSError as error:
        raise ImportFileError(path, None, error.strerror or str(error)) from error
