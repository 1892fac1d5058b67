"""Rows that look like several runs which a log does not tell apart, so that an import can refuse to mix them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from server.errors import ImportFileError

MOST = 0.5
"""Share of the steps that must occur several times for the rows to be those of several runs."""
LEAST_STEPS = 2


class Repeats:
    """Counts the steps of one run that occur several times, and the texts that change where the steps begin again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._step: int | None = None
        self._names: set[str] = set()
        self._is_repeated = False
        self._steps = 0
        self._repeated = 0
        self._first: tuple[int, str, str, str] | None = None
        """Step, name, and places of the first repeated scalar."""
        self._place = ""
        self._returns = 0
        self._texts: dict[str, str] = {}
        self._changes: dict[str, int] = {}
        """Number of changes of each column of texts."""
        self._together: dict[str, int] = {}
        """Number of those changes at which the steps began again."""

    def add(self, place: str, step: int, names: Collection[str], texts: Mapping[str, str]) -> None:
        """Take a row: the names of its scalars, and its columns of texts."""
        before = self._step
        went_back = before is not None and step < before
        if step != before:
            self._steps += 1
            self._step, self._names, self._is_repeated = step, set(), False
        for name in names:
            if name in self._names and not self._is_repeated:
                self._is_repeated = True
                self._repeated += 1
                self._first = self._first or (step, name, self._place, place)
        self._names.update(names)
        self._place = place
        self._returns += went_back
        for column, text in texts.items():
            if self._texts.get(column, text) != text:
                self._changes[column] = self._changes.get(column, 0) + 1
                self._together[column] = self._together.get(column, 0) + went_back
            self._texts[column] = text

    def check(self, step_column: str | None) -> None:
        """Raise `ImportFileError` if the rows are probably those of several runs."""
        if step_column is None:
            return
        for column, changes in self._changes.items():
            if 0 < self._returns == changes == self._together.get(column):
                raise ImportFileError(
                    self._path,
                    None,
                    f"the steps begin again each time that {column!r} changes, so it may hold several runs; "
                    f"separate them with --run-column {column!r}, or count all rows with --step-by-row",
                )
        if self._first is None or self._steps < LEAST_STEPS or self._repeated <= MOST * self._steps:
            return
        step, name, earlier, later = self._first
        text = next((column for column, changes in self._changes.items() if changes), None)
        run = f"--run-column {text!r}" if text is not None else "--run-column"
        raise ImportFileError(
            self._path,
            later,
            f"{name!r} occurs again at {step_column} {step} ({earlier} has it too), as at most other steps; if these "
            f"are several runs, name the column that separates them with {run}, if {step_column!r} is not the step, "
            "name the column with --step-column, or count the rows with --step-by-row",
        )
