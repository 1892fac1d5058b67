"""Meaning of the columns of a table: step, time, and the scalars of one or several runs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import ImportFileError
from server.imports.logged_run import Note

STEP_NAMES = (
    *("step", "_step", "global_step", "iteration", "iter", "steps", "iterations"),
    *("trainer/global_step", "train/global_step", "epoch"),
)
TIME_NAMES = ("time", "_timestamp", "timestamp", "wall_time", "wall time")
SHOWN_CHARS = 500
EXPORTED = ("run", "attempt", "rank", "step", "time")
"""First columns of an export."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Columns of one run in a table."""

    name: str | None
    """Name of the run in the table, None if it has no name there."""
    step: str
    time: str | None
    rank: str | None
    scalars: dict[str, str]
    """Names of scalars, keyed by column."""


def find_parts(path: Path, names: Sequence[str], step_column: str | None) -> list[Part]:
    """Return the runs of a table with these columns. Raises `ImportFileError` if there is no column of steps."""
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ImportFileError(path, "line 1", f"the column {twice!r} occurs twice")
    exported = tuple(names[: len(EXPORTED)]) == EXPORTED and "layer" not in names
    if "layer" in names and tuple(names[: len(EXPORTED)]) == EXPORTED:
        raise ImportFileError(path, None, "this is an export of layers in long form; import the Parquet export instead")
    step = _find_step(path, names, step_column)
    time = next((name for name in names if name.lower() in TIME_NAMES and name != step), None)
    apart = {step, time} | (set(EXPORTED) if exported else set())
    rest = [name for name in names if name not in apart and name != ""]
    curves = _wandb_curves(rest)
    if curves:
        return [Part(name=run, step=step, time=time, rank=None, scalars=found) for run, found in curves.items()]
    own = {name: name for name in rest if not name.startswith("_")}
    return [Part(name=None, step=step, time=time, rank="rank" if exported else None, scalars=own)]


def note_without_numbers(path: Path, column: str, note: Note) -> None:
    """Report a column that is left out because it contains no numbers."""
    note(f"{path}: the column {column!r} holds no numbers and is left out")


def _find_step(path: Path, names: Sequence[str], asked: str | None) -> str:
    if asked is not None:
        if asked in names:
            return asked
        raise ImportFileError(path, None, f"there is no column {asked!r}; the columns are: {', '.join(names)}")
    lower = {name.lower(): name for name in reversed(names)}
    for known in STEP_NAMES:
        if known in lower:
            return lower[known]
    raise ImportFileError(
        path,
        None,
        f"no column of steps: none is called {', '.join(STEP_NAMES)}; name it with --step-column; the columns are: "
        f"{', '.join(names)[:SHOWN_CHARS]}",
    )


def _wandb_curves(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the curves of an exported W&B chart by run, each as a mapping from column to metric.

    Such a chart has columns ``RUN - METRIC``, each accompanied by columns with the endings __MIN and __MAX.
    """
    found: dict[str, dict[str, str]] = {}
    known = set(names)
    for name in names:
        if " - " in name and {f"{name}__MIN", f"{name}__MAX"} <= known:
            run, metric = name.rsplit(" - ", 1)
            if metric.startswith("_"):
                continue  # _step and similar columns of a chart over another axis
            found.setdefault(run, {})[name] = metric
    return found
