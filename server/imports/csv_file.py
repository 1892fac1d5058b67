"""CSV files with a column of steps: our own exports, those of W&B and TensorBoard, and anybody's.

A column is read when its first cell that is not empty is a number; from then on each of its cells must be one or
empty. Empty says "not logged here".
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from client_sdk.protocol import Record
from server.errors import ImportFileError
from server.imports.logged_run import LoggedRun, Note, checked_step, digest
from server.imports.table_columns import Part, find_parts

SIDECAR = ".json"
"""Beside an export FILE.csv lies FILE.csv.json, with what a CSV has no place for."""


class _Sidecar(msgspec.Struct):
    run: dict[str, Any]


def open_file(path: Path, step_column: str | None, note: Note) -> list[LoggedRun]:
    """Raises `ImportFileError`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), [])
            fallback = path.stat().st_mtime
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImportFileError(path, "line 1", str(error)) from error
    if not header:
        raise ImportFileError(path, None, "the file is empty")
    about = _sidecar(path)
    runs = []
    for part in find_parts(path, header, step_column):

        def records(part: Part = part) -> Iterator[tuple[int, Record]]:
            return _records(path, header, part, fallback, note)

        runs.append(
            LoggedRun(
                path=path,
                identity=digest([path], part.name or ""),
                name=part.name or about.get("name") or path.stem,
                records=records,
                project=about.get("project"),
                config=about.get("config") or {},
                tags=tuple(about.get("tags") or ()) if about else ("csv",),
                renames=part.rank is None,
            )
        )
    return runs


def _records(path: Path, header: list[str], part: Part, fallback: float, note: Note) -> Iterator[tuple[int, Record]]:
    places = {name: at for at, name in enumerate(header)}
    step_at, columns = places[part.step], {places[column]: name for column, name in part.scalars.items()}
    time_at = None if part.time is None else places[part.time]
    rank_at = None if part.rank is None else places[part.rank]
    numeric: set[int] = set()
    number = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            next(reader, None)
            for row in reader:
                number = reader.line_num
                if not row:
                    continue
                place = f"line {number}"
                if len(row) != len(header):
                    raise ImportFileError(path, place, f"{len(row)} cells under {len(header)} columns")
                scalars = {}
                for at, name in list(columns.items()):
                    cell = row[at].strip()
                    if not cell:
                        continue
                    value = _number(cell)
                    if value is not None:
                        numeric.add(at)
                        scalars[name] = value
                    elif at in numeric:
                        raise ImportFileError(path, place, f"{cell!r} in the column {header[at]!r} is no number")
                    else:
                        del columns[at]
                        note(f"{path}: the column {header[at]!r} holds no numbers and is left out")
                step = _integer(path, place, header[step_at], row[step_at])
                time = fallback if time_at is None else _number(row[time_at].strip() or "nan")
                if time is None:
                    raise ImportFileError(path, place, f"{row[time_at or 0]!r} is no time in Unix seconds")
                rank = 0 if rank_at is None else _integer(path, place, "rank", row[rank_at])
                if scalars or part.name is None:
                    yield rank, Record(step=checked_step(path, place, step), time=time, scalars=scalars)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImportFileError(path, f"after line {number}", str(error)) from error


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _integer(path: Path, place: str, name: str, cell: str) -> int:
    try:
        return int(cell)
    except ValueError:
        value = _number(cell.strip())
        if value is None or not math.isfinite(value) or value != int(value):
            raise ImportFileError(path, place, f"{cell!r} in the column {name!r} is no whole number") from None
        return int(value)


def _sidecar(path: Path) -> dict[str, Any]:
    beside = path.with_name(path.name + SIDECAR)
    if not beside.is_file():
        return {}
    try:
        run: dict[str, Any] = msgspec.json.decode(beside.read_bytes(), type=_Sidecar).run
    except (OSError, msgspec.DecodeError) as error:
        raise ImportFileError(beside, None, f"this is not what an export writes ({error})") from error
    return run
