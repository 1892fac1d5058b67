"""Import of CSV files with a column of steps: exports of Spikewatch, W&B and TensorBoard, and any other table.

A column is imported if its first cell that is not empty is a number; all later cells must be numbers or empty. An empty
cell, or one of `EMPTY_CELLS`, means "not logged here". The separator is detected from the header. Where it is not the
comma, a comma may be the decimal separator, as in spreadsheets of many languages. Lines before the header that begin
with # are comments.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from client_sdk.protocol import Record
from server.errors import ImportFileError
from server.imports.entry import Entry
from server.imports.impostor import check_contents
from server.imports.logged_run import LoggedRun, Note, digest
from server.imports.options import ReadOptions
from server.imports.repeats import Repeats
from server.imports.run_groups import RunGroups
from server.imports.run_names import name_of
from server.imports.table_columns import EXPORTED, Part, find_parts
from server.imports.table_row import EMPTY_CELLS, RowReader

SEPARATORS = (",", ";", "\t")
COMMENT = "#"
MAX_COMMENTS = 1_000  # lines
__all__ = ["EMPTY_CELLS", "SIDECAR", "TableLines", "open_file"]
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
    comments: int
    """Number of lines before the header."""
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
            comments = 0
            with path.open(newline="", encoding=encoding) as file:
                line = file.readline(HEADER_CHARS)
                while line.startswith(COMMENT) and comments < MAX_COMMENTS:
                    comments += 1
                    line = file.readline(HEADER_CHARS)
                separator = separator_of(line)
                rest = itertools.chain([line], file)
                header = next(csv.reader(rest, delimiter=separator, strict=True, skipinitialspace=separator == " "), [])
        return cls(
            path=path, encoding=encoding, separator=separator, comments=comments, header=trimmed(header), is_cut=is_cut
        )

    def rows(self, note: Note) -> Iterator[tuple[int, list[str]]]:
        """Yield the line number and the cells of each row below the header.

        A file that was cut off is read up to that point. Raises `ImportFileError`.
        """
        number = 1
        with (
            _readable(self.path, lambda: f"after line {number}"),
            self.path.open(newline="", encoding=self.encoding) as file,
        ):
            for _ in range(self.comments):
                file.readline()
            reader = csv.reader(file, delimiter=self.separator, strict=True, skipinitialspace=self.separator == " ")
            next(reader, None)
            # A logger that starts anew may repeat the header.
            rows = ((self.comments + reader.line_num, self._cells(row)) for row in reader if row and row != self.header)
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

    def reader(self, part: Part, note: Note) -> RowReader:
        """Return the reader of the rows of a part."""
        return RowReader(self.path, self.header, part, note, decimal_comma=self.separator != ",")

    def _cells(self, row: list[str]) -> list[str]:
        # Lines in columns that spaces align may end with one.
        return row[:-1] if self.separator == " " and len(row) == len(self.header) + 1 and row[-1] == "" else row


def open_file(path: Path, options: ReadOptions, note: Note, root: Path | None = None) -> list[LoggedRun]:
    """Return the runs of a CSV file. ``root`` is the folder that is imported. Raises `ImportFileError`."""
    check_contents(path)
    table = _Table.of(path)
    header = table.header
    fallback = path.stat().st_mtime
    if not header:
        raise ImportFileError(path, None, "the file is empty")
    about = _sidecar(path)
    name = about.get("name") or name_of(path, root)
    tags = tuple(about.get("tags") or ()) if about else ("csv",)
    runs = []
    for part in find_parts(path, header, options):
        if part.is_grouped:
            groups = RunGroups(path, part.runs, options)
            reader = table.reader(part, note)
            for number, row in table.rows(note):
                place = f"line {number}"
                groups.add(place, reader.read(place, row), reader.texts)
            return groups.runs(name, tags=tags, step_column=part.step)

        def records(part: Part = part) -> Iterator[tuple[int, Record]]:
            return _records(table, part, fallback, note)

        runs.append(
            LoggedRun(
                path=path,
                identity=digest([path], (part.name or "") + options.key),
                name=part.name or name,
                records=records,
                project=about.get("project"),
                config=about.get("config") or {},
                tags=tags,
                renames=part.rank is None,
            )
        )
    return runs


def _records(table: _Table, part: Part, fallback: float, note: Note) -> Iterator[tuple[int, Record]]:
    reader, repeats = table.reader(part, note), Repeats(table.path)
    for number, row in table.rows(note):
        place = f"line {number}"
        entry = reader.read(place, row)
        if part.rank is None:
            repeats.add(place, entry.step, entry.scalars, reader.texts)
        if entry.scalars or part.name is None:
            time = fallback if entry.time is None else entry.time
            yield reader.rank, Record(step=entry.step, time=time, scalars=entry.scalars)
    repeats.check(part.step)


class TableLines:
    """Parser of the lines of a table that grows. A row must not extend over several lines."""

    def __init__(self, path: Path, options: ReadOptions, note: Note) -> None:
        self.run_columns: tuple[str, ...] = ()
        self.config: dict[str, Any] = {}
        self._path = path
        self._options = options
        self._note = note
        self._header = ""
        self._is_long = False
        self._separator = ","
        self._reader: RowReader | None = None

    def parse(self, number: int, line: str) -> Sequence[Entry]:
        """Return the entry of a row. The first line that is no comment is the header."""
        if not line.strip() or (self._reader is None and line.startswith(COMMENT)):
            return ()
        if self._reader is None:
            self._begin(line)
            return ()
        if line == self._header:  # a logger that starts anew may repeat it
            return ()
        entry = self._reader.read(f"line {number}", self._cells(line))
        return (entry,) if entry.scalars else ()

    @property
    def is_long(self) -> bool:
        """Whether each row holds one scalar, with its name."""
        return self._is_long

    @property
    def has_header(self) -> bool:
        """Whether a header has been read."""
        return self._reader is not None

    def state(self) -> dict[str, Any]:
        """Return the header, and the numbers of rows."""
        rows = {} if self._reader is None else self._reader.rows
        return {"header": self._header, "rows": [[list(run), row] for run, row in rows.items()]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue below a header."""
        if state.get("header"):
            self._begin(state["header"])
        if self._reader is not None:
            self._reader.rows = {tuple(run): row for run, row in state["rows"]}

    def _begin(self, line: str) -> None:
        self._separator = separator_of(line)
        header = trimmed(self._cells(line))
        parts = find_parts(self._path, header, self._options)
        if len(parts) > 1 or parts[0].name is not None:
            raise ImportFileError(self._path, "line 1", "this is a chart of W&B, which does not grow; import it")
        self._header, self.run_columns = line, parts[0].runs
        self._is_long = parts[0].metric is not None
        self._reader = RowReader(self._path, header, parts[0], self._note, decimal_comma=self._separator != ",")

    def _cells(self, line: str) -> list[str]:
        return next(csv.reader([line], delimiter=self._separator, skipinitialspace=self._separator == " "), [])


def separator_of(header: str) -> str:
    """Return the character that separates the cells of a header: a comma if there is none, a space if nothing else.

    >>> separator_of("step;loss"), separator_of("step loss lr"), separator_of("Wall time,Step"), separator_of("step")
    (';', ' ', ',', ',')
    """
    best = max(SEPARATORS, key=header.count)
    return " " if header.count(best) == 0 and re.search(r"\S +\S", header) else best


def trimmed(header: list[str]) -> list[str]:
    """Return the names of the columns without surrounding spaces, except in an export, where they are as logged."""
    return header if tuple(header[: len(EXPORTED)]) == EXPORTED else [name.strip() for name in header]


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
