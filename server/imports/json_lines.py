"""JSON lines: one object on each line, or a JSON file with an array of such objects.

Nested objects become names that are joined by dots. The keys of the step and of the time are recognised by their names
among the first objects, or named by options. Objects without a step are left out; settings of the training in them
become its configuration.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from server.errors import ImportFileError
from server.imports.entry import Entry
from server.imports.impostor import check_contents
from server.imports.log_time import parse_date, unix_seconds
from server.imports.logged_run import LoggedRun, Note, checked_step
from server.imports.options import ReadOptions
from server.imports.record_file import LeftOut
from server.imports.run_groups import RunGroups
from server.imports.run_names import name_of
from server.imports.table_columns import METRIC_NAMES, RUN_NAMES, STEP_NAMES, TIME_NAMES, VALUE_NAMES

SUFFIXES = (".jsonl", ".ndjson", ".json")
SETTINGS = frozenset({"config", "hparams", "hyperparameters", "hyper_parameters", "args", "params"})
"""Keys of objects with settings of the training."""
SAMPLE = 200  # objects from which the key of the step is chosen
SHOWN = 20  # keys in a message


class JsonLines:
    """Parser of the objects of one file."""

    def __init__(self, path: Path, options: ReadOptions, note: Note) -> None:
        self.run_columns = options.run_columns
        self.config: dict[str, Any] = {}
        self.texts: dict[str, str] = {}
        """Texts of the latest object, keyed by name."""
        self.step_key: str | None = options.step_column
        self._path = path
        self._options = options
        self._note = note
        self._left_out = LeftOut(path, "is not a number", note)
        self._time_key = options.time_column
        self._metric, self._value = options.metric_column, options.value_column
        self._is_chosen = False
        self._rows: dict[tuple[str, ...], int] = {}

    @property
    def is_long(self) -> bool:
        """Whether each object holds one scalar, with its name."""
        return self._metric is not None and self._value is not None

    def choose(self, sample: Sequence[Mapping[str, Any]]) -> None:
        """Choose the keys of the step, the time and the runs by the names in the first objects."""
        counts = Counter(name for found in sample for name in found)
        lower = {name.lower(): name for name in reversed(list(counts))}
        if self.step_key is None and not self._options.step_by_row:
            known = [lower[name] for name in STEP_NAMES if name in lower]
            self.step_key = max(known, key=lambda name: counts[name], default=None)
        if self._time_key is None:
            self._time_key = next((lower[name] for name in TIME_NAMES if name in lower), None)
        if not self.run_columns:
            names = (lower[name] for name in RUN_NAMES if name in lower)
            self.run_columns = tuple(name for name in names if all(name in found for found in self._with_step(sample)))
        metric = self._metric or next((lower[name] for name in METRIC_NAMES if name in lower), None)
        value = self._value or next((lower[name] for name in VALUE_NAMES if name in lower), None)
        if metric is not None and value is not None and all(metric in found for found in self._with_step(sample)):
            self._metric, self._value = metric, value
        else:
            self._metric = self._value = None
        self._is_chosen = True

    def parse(self, number: int, line: str) -> Sequence[Entry]:
        """Return the entry of an object. Raises `ImportFileError`."""
        found = decoded(self._path, number, line)
        if found is None:
            return ()
        if not self._is_chosen:
            if self.step_key is None and not self._options.step_by_row and not STEPS & {name.lower() for name in found}:
                self._settings(found)
                return ()
            self.choose([found])
        entry = self.entry(f"line {number}", found)
        return () if entry is None or not entry.scalars else (entry,)

    def entry(self, place: str, found: Mapping[str, Any]) -> Entry | None:
        """Return the entry of a flat object, or None if it has no step. Raises `ImportFileError`."""
        run = self._run(place, found)
        if self.step_key is not None and found.get(self.step_key) is None:
            self._settings(found)
            return None
        if self.step_key is not None:
            step = self._step(place, found[self.step_key])
        else:
            step = self._rows.get(run, -1) + 1
            self._rows[run] = step
        time = None if self._time_key is None else self._time(place, found.get(self._time_key))
        apart = {self.step_key, self._time_key, *self.run_columns}
        self.texts = {}
        if self._metric is not None and self._value is not None:
            value = _number(found.get(self._value))
            scalars = {} if value is None else {str(found.get(self._metric)): value}
        else:
            scalars = {}
            for name, item in found.items():
                value = None if name in apart or name.startswith("_") else _number(item)
                if value is not None:
                    scalars[name] = value
                elif name not in apart and isinstance(item, str):
                    self.texts[name] = item
                elif name not in apart and item is not None and not name.startswith("_"):
                    self._left_out.report(name)
        return Entry(step=step, scalars=scalars, time=time, run=run)

    def state(self) -> dict[str, Any]:
        """Return the keys that were chosen, and the numbers of rows."""
        return {
            "chosen": self._is_chosen,
            "step": self.step_key,
            "time": self._time_key,
            "runs": list(self.run_columns),
            "long": [self._metric, self._value],
            "rows": [[list(run), row] for run, row in self._rows.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue with the keys that another parser chose."""
        if not state:
            return
        self._is_chosen = state["chosen"]
        self.step_key, self._time_key = state["step"], state["time"]
        self.run_columns = tuple(state["runs"])
        self._metric, self._value = state["long"]
        self._rows = {tuple(run): row for run, row in state["rows"]}

    def _with_step(self, sample: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [found for found in sample if self.step_key is None or self.step_key in found]

    def _run(self, place: str, found: Mapping[str, Any]) -> tuple[str, ...]:
        if self.step_key is not None and self.step_key not in found:
            return ()
        missing = next((name for name in self.run_columns if found.get(name) is None), None)
        if missing is not None:
            raise ImportFileError(self._path, place, f"it has no {missing!r}, so its run is unknown")
        return tuple(str(found[name]) for name in self.run_columns)

    def _settings(self, found: Mapping[str, Any]) -> None:
        for name, value in found.items():
            first, _, rest = name.partition(".")
            if first.lower() in SETTINGS and rest:
                self.config[rest] = value

    def _step(self, place: str, value: Any) -> int:
        number = _number(value)
        if number is None or not math.isfinite(number) or number != int(number):
            raise ImportFileError(
                self._path,
                place,
                f"{value!r} under {self.step_key!r} is not a whole number; name the key of the step with "
                "--step-column, or use --step-by-row",
            )
        return checked_step(self._path, place, value if isinstance(value, int) else int(number))

    def _time(self, place: str, value: Any) -> float | None:
        if value is None:
            return None
        number = _number(value)
        when = unix_seconds(number) if number is not None else parse_date(value) if isinstance(value, str) else None
        if when is None:
            raise ImportFileError(
                self._path, place, f"{value!r} is not a time; write Unix seconds or 2026-11-22T12:30:00"
            )
        return when


STEPS = frozenset(STEP_NAMES)


def open_file(path: Path, options: ReadOptions, note: Note, root: Path | None = None) -> list[LoggedRun]:
    """Return the runs of a file. ``root`` is the folder that is imported. Raises `ImportFileError`."""
    check_contents(path)
    parser = JsonLines(path, options, note)
    sample = [found for _, found in _first(_objects(path, note))]
    if not sample:
        raise ImportFileError(path, None, "the file is empty")
    parser.choose(sample)
    keys = list(dict.fromkeys(name for found in sample for name in found))
    if parser.step_key is None and not options.step_by_row:
        shown = ", ".join(keys[:SHOWN])
        raise ImportFileError(
            path,
            None,
            f"no key of steps: none is called {', '.join(STEP_NAMES)}; name it with --step-column, or count the "
            f"objects with --step-by-row; the keys are: {shown}",
        )
    asked = [
        *((options.step_column, "--step-column"), (options.time_column, "--time-column")),
        *((name, "--run-column") for name in options.run_columns),
        *((options.metric_column, "--metric-column"), (options.value_column, "--value-column")),
    ]
    for name, option in asked:
        if name is not None and name not in keys:
            shown = ", ".join(keys[:SHOWN])
            raise ImportFileError(path, None, f"there is no key {name!r}, which {option} names; the keys are: {shown}")
    groups = RunGroups(path, parser.run_columns, options)
    for place, found in _objects(path, lambda _: None):
        entry = parser.entry(place, found)
        if entry is None:
            note(f"{path}: objects without {parser.step_key!r} are left out")
        else:
            groups.add(place, entry, parser.texts)
    return groups.runs(name_of(path, root), tags=("json",), step_column=parser.step_key, config=parser.config)


def decoded(path: Path, number: int, line: str) -> dict[str, Any] | None:
    """Return the flat object of a line, or None for an empty line. Raises `ImportFileError`."""
    if not line.strip():
        return None
    try:
        found = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
        raise ImportFileError(path, f"line {number}", f"it is not JSON ({reason})") from error
    if not isinstance(found, dict):
        raise ImportFileError(path, f"line {number}", f'expected an object such as {{"step": 1}}, not {line[:40]}')
    return flattened(found)


def flattened(found: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the object without nested objects.

    >>> flattened({"step": 1, "val": {"loss": 0.5}})
    {'step': 1, 'val.loss': 0.5}
    """
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _objects(path: Path, note: Note) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the flat contents of each object. A last line that was cut off is left out."""
    if path.suffix == ".json" and (items := _array(path)) is not None:
        yield from ((f"item {number}", flattened(item)) for number, item in enumerate(items, 1))
        return
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                try:
                    found = decoded(path, number, line)
                except ImportFileError:
                    if line.endswith("\n") or number == 1:
                        raise
                    note(f"{path} breaks off in line {number}; the lines before it are read")
                    return
                if found is not None:
                    yield f"line {number}", found
    except UnicodeError as error:
        raise ImportFileError(path, None, f"it is not UTF-8 ({error}); save it as UTF-8") from error
    except OSError as error:
        raise ImportFileError(path, None, error.strerror or str(error)) from error


def _array(path: Path) -> list[dict[str, Any]] | None:
    """Return the objects of a JSON array, or None if the file has one object in each line."""
    text = path.read_bytes()
    if not text.lstrip().startswith(b"["):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImportFileError(
            path, None, f"it is not JSON ({error}); a truncated file has to be downloaded again"
        ) from error
    if not all(isinstance(item, dict) for item in items):
        raise ImportFileError(path, None, "expected an array of objects, each with a step and scalars")
    return list(items)


def _first(objects: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    return (item for _, item in zip(range(SAMPLE), objects, strict=False))


def _number(value: Any) -> float | None:
    """Return a number, also if it is written as a text, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def is_object(line: bytes) -> bool:
    """Return whether a line is a JSON object."""
    try:
        return line.lstrip().startswith(b"{") and isinstance(msgspec.json.decode(line), dict)
    except msgspec.DecodeError:
        return False
