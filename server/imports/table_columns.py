"""Meaning of the columns of a table: step, time, and the scalars of one or several runs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import ImportFileError
from server.imports.logged_run import Note
from server.imports.options import ReadOptions

STEP_NAMES = (
    *("step", "_step", "global_step", "iteration", "iter", "steps", "iterations"),
    *("trainer/global_step", "train/global_step", "epoch"),
)
TIME_NAMES = ("time", "_timestamp", "timestamp", "wall_time", "wall time")
RUN_NAMES = ("run", "run_name", "run_id", "experiment", "experiment_name", "trial", "trial_id", "seed")
"""Columns that separate runs where their values differ, the most telling first."""
METRIC_NAMES = ("metric", "metric_name", "name", "tag", "key", "variable", "scalar")
VALUE_NAMES = ("value", "metric_value", "val", "scalar_value")
SHOWN_CHARS = 500
EXPORTED = ("run", "attempt", "rank", "step", "time")
"""First columns of an export."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Columns of one run in a table, or of several that its rows tell apart."""

    name: str | None
    """Name of the run in the table, None if it has no name there."""
    step: str | None
    """Column of steps; None if the rows of a run are counted."""
    time: str | None
    rank: str | None
    scalars: dict[str, str]
    """Names of scalars, keyed by column."""
    runs: tuple[str, ...] = ()
    """Columns that may separate runs."""
    metric: str | None = None
    """Column with the name of the scalar of each row, in a table in long form."""
    value: str | None = None
    """Column with the value of the scalar of each row."""

    @property
    def is_grouped(self) -> bool:
        """Whether the rows have to be collected by run or by step before they are records."""
        return bool(self.runs) or self.metric is not None


def find_parts(path: Path, names: Sequence[str], options: ReadOptions) -> list[Part]:
    """Return the runs of a table with these columns. Raises `ImportFileError` if there is no column of steps."""
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ImportFileError(path, "line 1", f"the column {twice!r} occurs twice")
    exported = tuple(names[: len(EXPORTED)]) == EXPORTED and "layer" not in names
    if "layer" in names and tuple(names[: len(EXPORTED)]) == EXPORTED:
        raise ImportFileError(path, None, "this is an export of layers in long form; import the Parquet export instead")
    step = None if options.step_by_row else _find_step(path, names, options.step_column)
    time = _named(path, names, options.time_column, "--time-column") or next(
        (name for name in names if name.lower() in TIME_NAMES and name != step), None
    )
    runs = tuple(name for column in options.run_columns if (name := _named(path, names, column, "--run-column")))
    if not runs and not exported:
        lower = {name.lower(): name for name in reversed(names)}
        runs = tuple(lower[known] for known in RUN_NAMES if known in lower and lower[known] not in {step, time})
    metric, value = _long_form(path, names, options, {step, time, *runs})
    apart = {step, time, metric, value, *runs} | (set(EXPORTED) if exported else set())
    rest = [name for name in names if name not in apart and name != ""]
    curves = _wandb_curves(rest)
    if curves:
        return [Part(name=run, step=step, time=time, rank=None, scalars=found) for run, found in curves.items()]
    own = {} if metric is not None else {name: name for name in rest if not name.startswith("_")}
    rank = "rank" if exported else None
    return [Part(name=None, step=step, time=time, rank=rank, scalars=own, runs=runs, metric=metric, value=value)]


def note_without_numbers(path: Path, column: str, note: Note) -> None:
    """Report a column that is left out because it contains no numbers."""
    note(f"{path}: the column {column!r} holds no numbers and is left out")


def _named(path: Path, names: Sequence[str], asked: str | None, option: str) -> str | None:
    """Return the column that an option names, or None without the option. Raises `ImportFileError`."""
    if asked is None or asked in names:
        return asked
    shown = ", ".join(names)[:SHOWN_CHARS]
    raise ImportFileError(path, None, f"there is no column {asked!r}, which {option} names; the columns are: {shown}")


def _find_step(path: Path, names: Sequence[str], asked: str | None) -> str:
    named = _named(path, names, asked, "--step-column")
    if named is not None:
        return named
    lower = {name.lower(): name for name in reversed(names)}
    for known in STEP_NAMES:
        if known in lower:
            return lower[known]
    raise ImportFileError(
        path,
        None,
        f"no column of steps: none is called {', '.join(STEP_NAMES)}; name it with --step-column, or count the rows "
        f"with --step-by-row; the columns are: {', '.join(names)[:SHOWN_CHARS]}",
    )


def _long_form(
    path: Path, names: Sequence[str], options: ReadOptions, apart: set[str | None]
) -> tuple[str | None, str | None]:
    """Return the columns of names and of values of a table in long form, or two times None.

    A table is in long form if it has both columns and no other columns of scalars.
    """
    metric = _named(path, names, options.metric_column, "--metric-column")
    value = _named(path, names, options.value_column, "--value-column")
    lower = {name.lower(): name for name in reversed(names) if name not in apart}
    found = metric or next((lower[known] for known in METRIC_NAMES if known in lower), None)
    number = value or next((lower[known] for known in VALUE_NAMES if known in lower), None)
    if (metric is None) != (value is None) and (found is None or number is None):
        given, missing = (
            ("--metric-column", "--value-column") if value is None else ("--value-column", "--metric-column")
        )
        raise ImportFileError(path, None, f"{given} is given without {missing}; name both columns")
    return (found, number) if found is not None and number is not None else (None, None)


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
