"""Plain text logs, read by the built-in formats or by a pattern of the user."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from server.errors import ImportFileError
from server.imports import text_formats
from server.imports.entry import Entry
from server.imports.impostor import check_contents
from server.imports.log_time import find_date, parse_date, unix_seconds
from server.imports.logged_run import LoggedRun, Note, checked_step
from server.imports.options import SPECIAL_GROUPS, ReadOptions
from server.imports.run_groups import RunGroups
from server.imports.run_names import name_of
from server.imports.text_formats import Found, Memory, TextFormat, number_in, plain

SUFFIXES = (".log", ".out", ".txt")
ENOUGH = 20  # lines of one format by which it is recognised
SEARCHED_LINES = 200_000
LINE_CHARS = 65_536  # a longer line is no line of a log
SHOWN_CHARS = 80


class TextLines:
    """Parser of the lines of one file."""

    def __init__(self, path: Path, options: ReadOptions, form: TextFormat | None = None) -> None:
        """``form`` is the format of the file; without it and without a pattern the lines tell it."""
        self.config: dict[str, Any] = {}
        self._path = path
        self._pattern = options.pattern
        self._by_row = options.step_by_row
        self.run_columns: tuple[str, ...] = (
            ("run",) if self._pattern is not None and "run" in self._pattern.groupindex else ()
        )
        self._form = form
        self._memory = Memory()
        self._memories: dict[str, Memory] = {}
        """Memories of all formats, keyed by name, while the format is not recognised."""
        self._rows: dict[tuple[str, ...], int] = {}

    @property
    def is_long(self) -> bool:
        """Whether each line holds one scalar: never."""
        return False

    def parse(self, number: int, line: str) -> Sequence[Entry]:
        """Return the entry of a line. Raises `ImportFileError` if a group of the pattern holds no number."""
        text = plain(line[:LINE_CHARS])
        if self._pattern is not None:
            match = self._pattern.search(text)
            return () if match is None else (self._matched(f"line {number}", match),)
        found = self._recognised(text) if self._form is None else self._form.parse(text, self._memory)
        if found is None or not found.scalars:
            return ()
        step = self._row(()) if self._by_row else checked_step(self._path, f"line {number}", found.step)
        return (Entry(step=step, scalars=found.scalars, time=find_date(text)),)

    def _recognised(self, text: str) -> Found | None:
        """Return what a line holds by the first format that knows it, which is that of all later lines.

        The general format is not decisive: a special one may follow.
        """
        for form in text_formats.FORMATS:
            memory = self._memories.setdefault(form.name, Memory())
            found = form.parse(text, memory)
            if found is not None:
                if form is not text_formats.FORMATS[-1]:
                    self._form, self._memory = form, memory
                return found
        return None

    def state(self) -> dict[str, Any]:
        """Return the format, the latest step, and the numbers of rows."""
        return {
            "format": None if self._form is None else self._form.name,
            "step": self._memory.step,
            "steps": {name: memory.step for name, memory in self._memories.items()},
            "rows": [[list(run), row] for run, row in self._rows.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue with the format that another parser recognised."""
        if not state:
            return
        self._form = text_formats.named(state["format"]) if state["format"] is not None else None
        self._memory.step = state["step"]
        self._memories = {name: Memory(step=step) for name, step in state["steps"].items()}
        self._rows = {tuple(run): row for run, row in state["rows"]}

    def _matched(self, place: str, match: re.Match[str]) -> Entry:
        groups = {name: text.strip() for name, text in match.groupdict().items() if text is not None}
        run = (groups.get("run", ""),) if self.run_columns else ()
        scalars = {}
        for name, text in groups.items():
            if name in SPECIAL_GROUPS:
                continue
            value = number_in(text)
            if value is None:
                raise ImportFileError(self._path, place, f"{text!r} in the group {name!r} of --pattern is not a number")
            scalars[name] = value
        if self._by_row:
            step = self._row(run)
        else:
            found = number_in(groups.get("step", ""))
            if found is None or not found.is_integer():
                raise ImportFileError(
                    self._path, place, f"{groups.get('step')!r} in the group 'step' of --pattern is not a whole number"
                )
            step = checked_step(self._path, place, int(found))
        time = None
        if "time" in groups:
            seconds = number_in(groups["time"])
            time = parse_date(groups["time"]) if seconds is None else unix_seconds(seconds)
            if time is None:
                raise ImportFileError(
                    self._path, place, f"{groups['time']!r} in the group 'time' of --pattern is not a time"
                )
        return Entry(step=step, scalars=scalars, time=find_date(match.string) if time is None else time, run=run)

    def _row(self, run: tuple[str, ...]) -> int:
        self._rows[run] = self._rows.get(run, -1) + 1
        return self._rows[run]


def recognised(path: Path) -> TextFormat | None:
    """Return the format of a file, or None. Raises `ImportFileError` if it cannot be read."""
    lines = (line for _, line in zip(range(SEARCHED_LINES), _lines(path), strict=False))
    return text_formats.recognise(lines, ENOUGH)


def open_file(path: Path, options: ReadOptions, note: Note, root: Path | None = None) -> list[LoggedRun]:
    """Return the runs of a text log. ``root`` is the folder that is imported. Raises `ImportFileError`."""
    check_contents(path)
    form = recognised(path) if options.pattern is None else None
    if form is None and options.pattern is None:
        raise ImportFileError(
            path,
            None,
            f"no line has a format that is known ({', '.join(known.name for known in text_formats.FORMATS[:-1])}, or "
            "any with a step and a loss); describe its lines with --pattern, for example "
            r"'step (?P<step>\d+) loss (?P<loss>\S+)'",
        )
    parser = TextLines(path, options, form)
    groups = RunGroups(path, parser.run_columns, options)
    found = False
    for number, line in enumerate(_lines(path), 1):
        for entry in parser.parse(number, line):
            found = True
            groups.add(f"line {number}", entry)
    if not found:
        first = next((line.strip() for line in _lines(path) if line.strip()), "")
        raise ImportFileError(path, None, f"no line matches --pattern; the first line is {first[:SHOWN_CHARS]!r}")
    tag = "text" if form is None or form.name == "pairs" else form.name.lower()
    return groups.runs(name_of(path, root), tags=(tag,), step_column=None if options.step_by_row else "step")


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
            while line := file.readline(LINE_CHARS):
                yield line
    except OSError as error:
        raise ImportFileError(path, None, error.strerror or str(error)) from error
