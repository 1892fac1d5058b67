"""Entries of one file, collected by the run they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from client_sdk.protocol import Record
from server.errors import ImportFileError
from server.imports.entry import Entry
from server.imports.logged_run import LoggedRun, digest
from server.imports.options import ReadOptions
from server.imports.points import Points
from server.imports.repeats import Repeats
from server.imports.table_columns import RUN_NAMES

SPEAKING = frozenset({"run", "run_name", "run_id", "experiment", "experiment_name"})
"""Columns whose values are names of runs by themselves."""
MAX_RUNS = 10_000

Key = tuple[str, ...]


class RunGroups:
    """Runs of one file in memory. Nothing is stored before all of the file has been read."""

    def __init__(self, path: Path, columns: Sequence[str], options: ReadOptions) -> None:
        """``columns`` may separate runs; those that the user named in ``options`` do."""
        self._path = path
        self._columns = tuple(columns)
        self._options = options
        self._points: dict[Key, Points] = {}
        self._repeats: dict[Key, Repeats] = {}
        self._fallback = path.stat().st_mtime

    def add(self, place: str, entry: Entry, texts: Mapping[str, str] | None = None) -> None:
        """Add an entry. ``texts`` are values of the same line that are no numbers."""
        points = self._points.get(entry.run)
        if points is None:
            if len(self._points) >= MAX_RUNS:
                columns = " and ".join(repr(name) for name in self._columns)
                raise ImportFileError(
                    self._path, place, f"{columns} separate more than {MAX_RUNS} runs; name others with --run-column"
                )
            points = self._points[entry.run] = Points()
            self._repeats[entry.run] = Repeats(self._path)
        self._repeats[entry.run].add(place, entry.step, entry.scalars, texts or {})
        time = self._fallback if entry.time is None else entry.time
        for name, value in entry.scalars.items():
            points.add(time, entry.step, name, value)

    def runs(
        self, name: str, *, tags: tuple[str, ...], step_column: str | None, config: Mapping[str, Any] | None = None
    ) -> list[LoggedRun]:
        """Return the runs. ``name`` is that of the file. Raises `ImportFileError` if it is unclear what a run is."""
        if not self._points:
            raise ImportFileError(self._path, None, "it contains no scalars")
        telling = self._telling()
        for repeats in self._repeats.values():
            repeats.check(step_column)
        return [
            LoggedRun(
                path=self._path,
                identity=digest([self._path], self._part(self._label(name, key, telling) if telling else "")),
                name=self._label(name, key, telling),
                records=_records(points),
                config={**(config or {}), **dict(zip(self._columns, map(_plain, key), strict=True))},
                tags=tags,
            )
            for key, points in self._points.items()
        ]

    def _part(self, label: str) -> str:
        return label + self._options.key

    def _telling(self) -> tuple[int, ...]:
        """Return the positions of the columns that name the runs. Raises `ImportFileError` if it is ambiguous."""
        keys = list(self._points)
        if self._options.run_columns:
            return tuple(range(len(self._columns)))
        varying = [at for at in range(len(self._columns)) if len({key[at] for key in keys}) > 1]
        if not varying:
            return tuple(at for at, name in enumerate(self._columns) if name.lower() in SPEAKING)[:1]
        for at in sorted(varying, key=lambda at: RUN_NAMES.index(self._columns[at].lower())):
            if len({key[at] for key in keys}) == len(keys):
                return (at,)
        first, second = (self._columns[at] for at in varying[:2])
        raise ImportFileError(
            self._path,
            None,
            f"both {first!r} and {second!r} may separate the runs; choose with --run-column {first!r} or --run-column "
            f"{second!r}, or give both",
        )

    def _label(self, name: str, key: Key, telling: Sequence[int]) -> str:
        if not telling:
            return name
        if len(telling) == 1 and self._columns[telling[0]].lower() in SPEAKING and not _is_number(key[telling[0]]):
            return key[telling[0]]
        return f"{name} {', '.join(f'{self._columns[at]}={key[at]}' for at in telling)}"


def _records(points: Points) -> Any:
    def records() -> Iterator[tuple[int, Record]]:
        return ((0, record) for record in points.records())

    return records


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plain(text: str) -> Any:
    """Return the number in a text, or the text."""
    try:
        return int(text)
    except ValueError:
        return float(text) if _is_number(text) else text
