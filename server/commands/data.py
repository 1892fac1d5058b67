"""Commands that work on stored runs, directly on the database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from client_sdk import answers
from server.commands import reading
from server.commands.context import (
    EXIT_UNUSABLE,
    Data,
    RunId,
    load_config,
    one_line_errors,
    require_database,
    with_database,
)
from server.storage import migrate as migrations
from server.storage.database import Database
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.measurements.integrity import Doctor
from server.storage.runs import RunStore
from server.terminal_table import print_table

EXIT_DAMAGED = 1
"""Exit code of `doctor` if damage is left."""


def migrate() -> None:
    """Upgrade the schema of the database to this version."""
    with one_line_errors():
        with_database(load_config(), migrations.upgrade)
        print("The schema is up to date.")


def runs(
    project: Annotated[str | None, typer.Option(help="List only the runs of this project.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Number of runs to list.")] = 20,
    data: Data = None,
) -> None:
    """List the newest runs."""

    async def read(database: Database) -> Sequence[answers.RunSummary]:
        await migrations.upgrade(database)
        fleet = FleetQuery(database, RunStore(database), LayoutStore(database))
        return (await fleet.page(projects=None if project is None else [project], limit=limit)).runs

    with one_line_errors():
        config = load_config(data=data)
        found = with_database(config if data is None else require_database(config), read)
    if not found:
        print("No runs yet.")
        return
    rows = [
        (
            run.id,
            run.project,
            run.name,
            run.state,
            "" if run.last_step is None else str(run.last_step),
            "" if run.loss is None else f"{run.loss:.4g}",
            run.stage or "",
            str(run.open_alerts),
        )
        for run in found
    ]
    print_table(("RUN", "PROJECT", "NAME", "STATE", "STEP", "LOSS", "STAGE", "ALERTS"), rows)


def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Rebuild what can be rebuilt, and mark the rest as lost.")
    ] = False,
    data: Data = None,
) -> None:
    """Read every stored measurement and report what is damaged. Exits with code 1 if damage is left."""

    async def examine(database: Database) -> int:
        await migrations.upgrade(database)
        left = 0
        async for damage in Doctor(database).examine(repair=repair):
            run = f"run {damage.run_id}: " if damage.run_id else ""
            remedy = f"; {damage.remedy}" if damage.remedy else ""
            print(f"{run}{damage.where}: {damage.problem}{remedy}", flush=True)
            left += not damage.remedy
        return left

    with one_line_errors():
        left = with_database(require_database(load_config(data=data)), examine)
    print("Everything is readable." if left == 0 else f"{left} damaged; run `spikewatch doctor --repair` to repair.")
    raise typer.Exit(EXIT_DAMAGED if left else 0)


def export(
    run: RunId,
    out: Annotated[Path, typer.Option(help="File to write: .zip for everything, .parquet or .csv for the steps.")],
    layers: Annotated[bool, typer.Option(help="Write layers to a CSV, one row for each step and layer.")] = False,
    data: Data = None,
) -> None:
    """Write a run to a file: everything, or every step of it. An existing file is replaced."""
    from server.transfers import export_run

    with one_line_errors():
        rows = with_database(
            require_database(load_config(data=data)), lambda database: export_run(database, run, out, layers=layers)
        )
        print(f"{out}: {rows} rows")


def import_runs(
    paths: reading.Logs,
    *,
    project: reading.Project = None,
    rename: reading.Rename = None,
    step_column: reading.StepColumn = None,
    time_column: reading.TimeColumn = None,
    run_column: reading.RunColumn = None,
    metric_column: reading.MetricColumn = None,
    value_column: reading.ValueColumn = None,
    step_by_row: reading.StepByRow = False,
    pattern: reading.Pattern = None,
    data: Data = None,
) -> None:
    """Import the logs of other tools as runs. Importing the same file again changes nothing."""
    from server.transfers import import_paths

    with one_line_errors():
        config = load_config(data=data)
        names = reading.renames(rename)
        options = reading.read_options(
            step_column=step_column,
            time_column=time_column,
            run_column=run_column,
            metric_column=metric_column,
            value_column=value_column,
            step_by_row=step_by_row,
            pattern=pattern,
        )
        broken = with_database(
            config,
            lambda database: import_paths(config, database, paths, project=project, renames=names, options=options),
        )
    if broken:
        raise typer.Exit(EXIT_UNUSABLE)


def delete(
    run: RunId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    data: Data = None,
) -> None:
    """Delete a run for good and free its space."""
    from server.transfers import delete_run

    if not yes:
        typer.confirm(f"Delete the run {run} for good?", abort=True)
    with one_line_errors():
        with_database(require_database(load_config(data=data)), lambda database: delete_run(database, run))
        print(f"The run {run} is deleted.")
