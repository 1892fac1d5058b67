"""The command that tells a script whether a run is as it should be."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from client_sdk.vocabulary import AlertLevel
from server.commands import reading
from server.commands.context import (
    EXIT_UNUSABLE,
    Data,
    load_config,
    one_line_errors,
    require_database,
    with_database,
)
from server.terminal_table import printable

EXIT_FOUND = 1
"""Exit code of `check` if something was found at the level or above."""


def check(
    subject: Annotated[
        str, typer.Argument(metavar="RUN|PATH", help="Id of a stored run, or a file or folder with logs.")
    ],
    *,
    fail_on: Annotated[
        AlertLevel, typer.Option(help="Least level of a finding that fails the check.")
    ] = AlertLevel.WARNING,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
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
    """Check a run or logs: exit code 0 if nothing was found, 1 if something was, 2 if it cannot be read.

    Logs are imported into a temporary database, so that nothing is stored.
    """
    from server.checking.check import check_path, check_run
    from server.checking.report import CheckReport

    with one_line_errors():
        options = reading.read_options(
            step_column=step_column,
            time_column=time_column,
            run_column=run_column,
            metric_column=metric_column,
            value_column=value_column,
            step_by_row=step_by_row,
            pattern=pattern,
        )
        config = load_config(data=data)
        path = Path(subject).expanduser()
        if path.exists():
            facts = asyncio.run(check_path(path, renames=reading.renames(rename), options=options))
        elif reading.looks_like_path(subject):
            facts = None
            typer.echo(f"spikewatch: {subject}: there is no such file or folder", err=True)
        else:
            facts = with_database(require_database(config), lambda database: check_run(database, subject))
    if facts is None:
        raise typer.Exit(EXIT_UNUSABLE)
    report = CheckReport.of(facts, fail_on, is_stored=not path.exists())
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        for line in report.lines():
            print(printable(line))
    raise typer.Exit(0 if report.passed else EXIT_FOUND)
