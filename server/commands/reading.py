"""Options of the commands that read logs of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from server.errors import ConfigurationError
from server.imports.options import ReadOptions, compiled_pattern

Logs = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...",
        help="Folders or files: TensorBoard events, .wandb, .csv, .jsonl, trainer_state.json, text logs, "
        ".parquet, .zip.",
    ),
]
Project = Annotated[str | None, typer.Option(help="Project of the runs. [default: that of the file, or `imported`]")]
Rename = Annotated[
    list[str] | None, typer.Option(help="OLD=NEW renames a scalar, for example to `loss`. May be repeated.")
]
StepColumn = Annotated[str | None, typer.Option(help="Name of the column or key of steps, if it is not recognized.")]
TimeColumn = Annotated[str | None, typer.Option(help="Name of the column or key of times, if it is not recognized.")]
RunColumn = Annotated[
    list[str] | None,
    typer.Option(help="Column or key whose values separate the runs of a file. May be repeated."),
]
MetricColumn = Annotated[
    str | None, typer.Option(help="Column with the names of scalars, in a table with one scalar in each row.")
]
ValueColumn = Annotated[str | None, typer.Option(help="Column with the values of these scalars.")]
StepByRow = Annotated[bool, typer.Option("--step-by-row", help="Count the rows of each run instead of reading steps.")]
Pattern = Annotated[
    str | None,
    typer.Option(
        help=r"Regular expression of a text log with named groups: step, time, run, and one for each scalar, such as "
        r"'step (?P<step>\d+) loss (?P<loss>\S+)'.",
    ),
]


def read_options(
    *,
    step_column: str | None,
    time_column: str | None,
    run_column: Sequence[str] | None,
    metric_column: str | None,
    value_column: str | None,
    step_by_row: bool,
    pattern: str | None,
) -> ReadOptions:
    """Return the choices of the user. Raises `ConfigurationError` if they cannot work."""
    if step_by_row and step_column is not None:
        raise ConfigurationError("--step-by-row counts rows and --step-column reads steps; give one of them")
    return ReadOptions(
        step_column=step_column,
        time_column=time_column,
        run_columns=tuple(run_column or ()),
        metric_column=metric_column,
        value_column=value_column,
        step_by_row=step_by_row,
        pattern=None if pattern is None else compiled_pattern(pattern, step_by_row=step_by_row),
    )


def looks_like_path(text: str) -> bool:
    """Return whether a text can only be meant as a path, because no id of a run is like it.

    >>> looks_like_path("logs/run"), looks_like_path("train.csv"), looks_like_path("4f1c20aa9d3b7e55")
    (True, True, False)
    """
    return "/" in text or Path(text).suffix != ""


def renames(given: Sequence[str] | None) -> dict[str, str]:
    """Return the new names, keyed by the old ones. Raises `ConfigurationError`."""
    pairs = [item.rpartition("=") for item in given or ()]
    for old, _, new in pairs:
        if not old or not new:
            raise ConfigurationError("--rename must be OLD=NEW, for example --rename train/objective=loss")
    return {old: new for old, _, new in pairs}
