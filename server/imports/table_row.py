"""Rows of cells in a table, read as entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from server.errors import ImportFileError
from server.imports.entry import Entry
from server.imports.log_time import parse_date, unix_seconds
from server.imports.logged_run import Note, checked_step
from server.imports.table_columns import Part, note_without_numbers

EMPTY_CELLS = frozenset({"", "na", "n/a", "#n/a", "null", "none", "-"})
"""Cells without a value as R, SQL, Python and people write them, in lower case."""


class RowReader:
    """Reads the rows of one part of a table. A column is numeric if its first cell with a value is a number."""

    def __init__(self, path: Path, header: Sequence[str], part: Part, note: Note, *, decimal_comma: bool) -> None:
        self.texts: dict[str, str] = {}
        """Cells of the latest row in columns without numbers, keyed by column."""
        self.rank = 0
        """Rank in the latest row."""
        self.rows: dict[tuple[str, ...], int] = {}
        """Number of the latest row of each run, if the rows are counted."""
        self._path = path
        self._header = list(header)
        self._part = part
        self._note = note
        self._decimal_comma = decimal_comma
        self._numeric: set[int] = set()
        places = {name: at for at, name in enumerate(header)}
        self._columns = {places[column]: name for column, name in part.scalars.items()}
        self._step = None if part.step is None else places[part.step]
        self._time = None if part.time is None else places[part.time]
        self._rank = None if part.rank is None else places[part.rank]
        self._runs = tuple(places[name] for name in part.runs)
        self._metric = None if part.metric is None else places[part.metric]
        self._value = None if part.value is None else places[part.value]
        self._text_columns: dict[int, str] = {}

    def read(self, place: str, row: Sequence[str]) -> Entry:
        """Return the entry of a row, which may have no scalars. Raises `ImportFileError`."""
        if len(row) != len(self._header):
            raise ImportFileError(self._path, place, f"{len(row)} cells under {len(self._header)} columns")
        run = tuple(row[at].strip() for at in self._runs)
        for at, text in zip(self._runs, run, strict=True):
            if text == "":
                raise ImportFileError(
                    self._path, place, f"the cell in the column {self._header[at]!r} is empty, so its run is unknown"
                )
        scalars = self._scalars(place, row)
        if self._step is None:
            step = self.rows.get(run, -1) + 1
            self.rows[run] = step
        else:
            step = checked_step(self._path, place, self._whole(place, self._step, row))
        if self._rank is not None:
            self.rank = self._whole(place, self._rank, row)
        self.texts = {name: row[at] for at, name in self._text_columns.items()}
        return Entry(step=step, scalars=scalars, time=self._time_of(place, row), run=run)

    def number(self, cell: str) -> float | None:
        """Return the number in a cell without surrounding spaces, or None if it is not a number."""
        if self._decimal_comma and "," in cell and "." not in cell:
            cell = cell.replace(",", ".")
        try:
            return float(cell)
        except ValueError:
            return None

    def _scalars(self, place: str, row: Sequence[str]) -> dict[str, float]:
        if self._metric is not None and self._value is not None:
            name, cell = row[self._metric].strip(), row[self._value].strip()
            if cell.lower() in EMPTY_CELLS or name == "":
                return {}
            value = self.number(cell)
            if value is None:
                raise self._not_a_number(place, self._value, cell)
            return {name: value}
        scalars = {}
        for at, name in list(self._columns.items()):
            cell = row[at].strip()
            if cell.lower() in EMPTY_CELLS:
                continue
            value = self.number(cell)
            if value is not None:
                self._numeric.add(at)
                scalars[name] = value
            elif at in self._numeric:
                raise self._not_a_number(place, at, cell)
            else:
                del self._columns[at]
                self._text_columns[at] = name
                note_without_numbers(self._path, self._header[at], self._note)
        return scalars

    def _not_a_number(self, place: str, at: int, cell: str) -> ImportFileError:
        return ImportFileError(self._path, place, f"{cell!r} in the column {self._header[at]!r} is not a number")

    def _time_of(self, place: str, row: Sequence[str]) -> float | None:
        if self._time is None:
            return None
        cell = row[self._time].strip()
        if cell.lower() in EMPTY_CELLS:
            return math.nan
        seconds = self.number(cell)
        when = parse_date(cell) if seconds is None else seconds
        if seconds is not None and self._rank is None:  # an export has the times as they were logged
            when = unix_seconds(seconds)
        if when is None:
            raise ImportFileError(
                self._path, place, f"{row[self._time]!r} is not a time; write Unix seconds or 2026-11-22T12:30:00"
            )
        return when

    def _whole(self, place: str, at: int, row: Sequence[str]) -> int:
        cell, name = row[at].strip(), self._header[at]
        try:
            return int(cell)
        except ValueError:
            value = self.number(cell)
            if value is None or not math.isfinite(value) or value != int(value):
                remedy = (
                    "" if at == self._rank else "; name the column of steps with --step-column, or use --step-by-row"
                )
                raise ImportFileError(
                    self._path, place, f"{cell!r} in the column {name!r} is not a whole number{remedy}"
                ) from None
            return int(value)
