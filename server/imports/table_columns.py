"""What the columns of a table mean: which is the step, which the time, which numbers of which run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import ImportFileError

STEP_NAMES = (
    *("step", "_step", "global_step", "iteration", "iter", "steps", "iterations"),
    *("trainer/global_step", "train/global_step", "epoch"),
)
TIME_NAMES = ("time", "_timestamp", "timestamp", "wall_time", "wall time")
SHOWN_CHARS = 500
EXPORTED = ("run", "attempt", "rank", "step", "time")
"""How our own exports begin."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One run of a table."""

    name: str | None
    """As the table calls it; None: it has no name there."""
    step: str
    time: str | None
    rank: str | None
    scalars: dict[str, str]
    """Column to the name of the scalar."""


def find_parts(path: Path, names: Sequence[str], step_column: str | None) -> list[Part]:
    """The runs of a table with these columns. Raises `ImportFileError`."""
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ImportFileError(path, "line 1", f"the column {twice!r} comes twice")
    exported = tuple(names[: len(EXPORTED)]) == EXPORTED and "layer" not in names
    if "layer" in names and tuple(names[: len(EXPORTED)]) == EXPORTED:
        raise ImportFileError(path, None, "these are the layers in long form; import the Parquet export instead")
    step = _find_step(path, names, step_column)
    time = next((name for name in names if name.lower() in TIME_NAMES and name != step), None)
    apart = {step, time} | (set(EXPORTED) if exported else set())
    rest = [name for name in names if name not in apart and name != ""]
    curves = _wandb_curves(rest)
    if curves:
        return [Part(name=run, step=step, time=time, rank=None, scalars=found) for run, found in curves.items()]
    own = {name: name for name in rest if not name.startswith("_")}
    return [Part(name=None, step=step, time=time, rank="rank" if exported else None, scalars=own)]


def _find_step(path: Path, names: Sequence[str], asked: str | None) -> str:
    if asked is not None:
        if asked in names:
            return asked
        raise ImportFileError(path, None, f"there is no column {asked!r}; there are: {', '.join(names)}")
    lower = {name.lower(): name for name in reversed(names)}
    for known in STEP_NAMES:
        if known in lower:
            return lower[known]
    raise ImportFileError(
        path,
        None,
        f"no column of steps: none is called {', '.join(STEP_NAMES)}; say which with --step-column; there are: "
        f"{', '.join(names)[:SHOWN_CHARS]}",
    )


def _wandb_curves(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """What a chart of W&B exports: ``RUN - METRIC`` of several runs, each with its __MIN and __MAX."""
    found: dict[str, dict[str, str]] = {}
    known = set(names)
    for name in names:
        if " - " in name and {f"{name}__MIN", f"{name}__MAX"} <= known:
            run, metric = name.rsplit(" - ", 1)
            if metric.startswith("_"):
                continue  # _step and the like, which a chart over another axis has beside its metric
            found.setdefault(run, {})[name] = metric
    return found
