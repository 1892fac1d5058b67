"""Import of CSV files with a column of steps: exports of Spikewatch, W&B and TensorBoard, and any other table.

A column is imported if its first cell that is not empty is a number; all later cells must be numbers or empty. An empty
cell, or one of `EMPTY_CELLS`, means "not logged here". The separator is detected from the header. Where it is not the
comma, a comma may be the decimal separator, as in spreadsheets of many languages.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from client_sdk.protocol import Record
from server.errors import ImportFileError
from server.imports.logged_run import LoggedRun, Note, checked_step, digest
from server.imports.table_columns import EXPORTED, Part, find_parts, note_without_numbers

SEPARATORS = (",", ";", "\t")
EMPTY_CELLS = frozenset({"", "na", "n/a", "null", "none", "-"})
"""Cells without a value as R, SQL, Python and people write them, in lower case."""
HEADER_CHARS = 4 * 1024 * 1024  # a file with a longer first line is not a table
SIDECAR = ".json"
"""Suffix of the file next to an exported FILE.csv that describes the run, since a CSV file cannot."""


class _Sidecar(msgspec.Struct):
    run: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Format of a file, as detected from its beginning and end."""

    path: Path
    encoding: str
    separator: str
    header: list[str]
    is_cut: bool
    """Whether the last line is incomplete."""

    @classmethod
    def of(cls, path: Path) -> _Table:
        """Detect the format of a file. Raises `ImportFileError`."""
        with _readable(path, lambda: "line 1"):
            with path.open("rb") as raw:
                mark = raw.read(2)
                raw.seek(max(0, raw.seek(0, os.SEEK_END) - 2))
                is_cut = b"\n" not in raw.read(2)
            encoding = "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
            with path.open(newline="", encoding=encoding) as file:
                line = file.readline(HEADER_CHARS)
                separator = max(SEPARATORS, key=line.count)  # the comma if there is none of them
                file.seek(0)
                header = next(csv.reader(file, delimiter=separator, strict=True), [])
        if tuple(header[: len(EXPORTED)]) != EXPORTED:  # names in an export stay as they were logged
            header = [name.strip() for name in header]
        return cls(path=path, encoding=encoding, separator=separator, header=header, is_cut=is_cut)

    def rows(self, note: Note) -> Iterator[tuple[int, list[str]]]:
        """Yield the line number and the cells of each row below the header.

        A file that was cut off is read up to that point. Raises `ImportFileError`.
        """
        number = 1
        with (
            _readable(self.path, lambda: f"after line {number}"),
            self.path.open(newline="", encoding=self.encoding) as file,
        ):
            reader = csv.reader(file, delimiter=self.separator, strict=True)
            next(reader, None)
            rows = ((reader.line_num, row) for row in reader if row)
            waiting = next(rows, None)
            try:
                while waiting is not None:
                    found, waiting = waiting, None
                    number = found[0]
                    waiting = next(rows, None)
                    if waiting is None and self.is_cut and len(found[1]) < len(self.header):
                        note(f"{self.path} breaks off in line {number}; the lines before it are read")
                        return
                    yield found
            except csv.Error as error:
                if not self.is_cut or "end of data" not in str(error):
                    raise
                yield found
                note(f"{self.path} breaks off after line {number}; the lines before that are read")

    def number(self, cell: str) -> float | None:
        """Return the number in a cell without surrounding spaces, or None if it is not a number."""
        if self.separator != "," and "," in cell and "." not in cell:
            cell = cell.replace(",", ".")
        try:
            return float(cell)
        except ValueError:
            return None

    def time(self, cell: str) -> float | None:
        """Return the Unix time in a cell: seconds, or a date and time, which is UTC unless it names a time zone."""
        if cell.lower() in EMPTY_CELLS:
            return math.nan
        seconds = self.number(cell)
        if seconds is not None:
            return seconds
        try:
            when = datetime.fromisoformat(cell)
        except ValueError:
            return None
        return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()


def open_file(path: Path, step_column: str | None, note: Note) -> list[LoggedRun]:
    """Return the runs of a CSV file. ``step_column`` names the column of steps. Raises `ImportFileError`."""
    table = _Table.of(path)
    header = table.header
    fallback = path.stat().st_mtime
    if not header:
        raise ImportFileError(path, None, "the file is empty")
    about = _sidecar(path)
    runs = []
    for part in find_parts(path, header, step_column):

        def records(part: Part = part) -> Iterator[tuple[int, Record]]:
            return _records(table, part, fallback, note)

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


def _records(table: _Table, part: Part, fallback: float, note: Note) -> Iterator[tuple[int, Record]]:
    path, header = table.path, table.header
    places = {name: at for at, name in enumerate(header)}
    step_at, columns = places[part.step], {places[column]: name for column, name in part.scalars.items()}
    time_at = None if part.time is None else places[part.time]
    rank_at = None if part.rank is None else places[part.rank]
    numeric: set[int] = set()
    for number, row in table.rows(note):
        place = f"line {number}"
        if len(row) != len(header):
            raise ImportFileError(path, place, f"{len(row)} cells under {len(header)} columns")
        scalars = {}
        for at, name in list(columns.items()):
            cell = row[at].strip()
            if cell.lower() in EMPTY_CELLS:
                continue
            value = table.number(cell)
            if value is not None:
                numeric.add(at)
                scalars[name] = value
            elif at in numeric:
                raise ImportFileError(path, place, f"{cell!r} in the column {header[at]!r} is not a number")
            else:
                del columns[at]
                note_without_numbers(path, header[at], note)
        step = _integer(table, place, header[step_at], row[step_at].strip())
        time = fallback if time_at is None else table.time(row[time_at].strip())
        if time is None:
            raise ImportFileError(
                path, place, f"{row[time_at or 0]!r} is not a time; write Unix seconds or 2026-11-22T12:30:00"
            )
        rank = 0 if rank_at is None else _integer(table, place, "rank", row[rank_at].strip())
        if scalars or part.name is None:
            yield rank, Record(step=checked_step(path, place, step), time=time, scalars=scalars)


def _integer(table: _Table, place: str, name: str, cell: str) -> int:
    try:
        return int(cell)
    except ValueError:
        value = table.number(cell)
        if value is None or not math.isfinite(value) or value != int(value):
            raise ImportFileError(table.path, place, f"{cell!r} in the column {name!r} is not a whole number") from None
        return int(value)


@contextlib.contextmanager
def _readable(path: Path, place: Callable[[], str]) -> Iterator[None]:
    """Turn errors of reading into `ImportFileError`. ``place`` returns how far the reading has come."""
    try:
        yield
    except UnicodeError as error:
        # The file is decoded in large pieces, so the line is unknown.
        raise ImportFileError(path, None, f"it is not UTF-8 ({error}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise ImportFileError(path, place(), str(error)) from error


def _sidecar(path: Path) -> dict[str, Any]:
    sidecar = path.with_name(path.name + SIDECAR)
    if not sidecar.is_file():
        return {}
    try:
        run: dict[str, Any] = msgspec.json.decode(sidecar.read_bytes(), type=_Sidecar).run
    except (OSError, msgspec.DecodeError) as error:
        raise ImportFileError(sidecar, None, f"it cannot be read as the description of an export ({error})") from error
    return run
