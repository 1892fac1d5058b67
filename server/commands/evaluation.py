"""The command `spikewatch evaluate`: the detectors on recordings, or on one stored run.

It imports what it runs itself, so that the other commands start in half the time.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from client_sdk import answers
from client_sdk.vocabulary import Sensitivity
from server.commands.context import Data, load_config, one_line_errors, require_database, with_database
from server.errors import ConfigurationError
from server.terminal_table import print_table

if TYPE_CHECKING:
    from server.storage.database import Database


def _study_guard() -> int:
    """Run the study of the guard, which is no part of the distribution, and return its exit code."""
    root = Path(__file__).parents[2]
    if not (root / "campaigns" / "guard_study").is_dir():
        typer.echo("--guard trains the cases of the repository: run it in a checkout, or `make guard-study`", err=True)
        return 2
    return subprocess.run([sys.executable, "-m", "campaigns.guard_study"], cwd=root, check=False).returncode


def evaluate(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR|RUN]",
            help="Directory of recorded runs (*.npz), by default those of the package, or the id of a stored run, "
            "which is replayed.",
        ),
    ] = None,
    *,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes that replay recordings.")] = 1,
    with_runs: Annotated[bool, typer.Option("--runs", help="Print a row for each run as well.")] = False,
    with_rules: Annotated[bool, typer.Option("--rules/--no-rules", help="Score the rules of other programs.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as JSON instead of tables.")] = False,
    plots: Annotated[
        Path | None, typer.Option("--plot", metavar="DIR", help="Write lead times and forecast ranges as pages there.")
    ] = None,
    sensitivity: Annotated[
        Sensitivity, typer.Option(help="Fewer or more warnings of predicted spikes in the replay of a stored run.")
    ] = Sensitivity.USUAL,
    with_guard: Annotated[
        bool, typer.Option("--guard", help="Train with and without the guard instead, for some minutes; in a checkout.")
    ] = False,
    data: Data = None,
) -> None:
    """Score the detectors on recorded runs, or replay a stored run: what would have been told, and when."""
    if with_guard:
        raise typer.Exit(_study_guard())
    if subject is None or Path(subject).is_dir():
        from server.evaluation.evaluate import main as evaluate_main

        directory = None if subject is None else Path(subject)
        raise typer.Exit(
            evaluate_main(
                directory, jobs=jobs, with_runs=with_runs, with_rules=with_rules, as_json=as_json, plots=plots
            )
        )
    with one_line_errors():
        config = require_database(load_config(data=data))
        replay = with_database(config, lambda database: _replay(database, subject, sensitivity))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(replay)).decode())
    else:
        _print(replay)


async def _replay(database: Database, run_id: str, sensitivity: Sensitivity) -> answers.Replay:
    """Replay a stored run to its end. Raises `ConfigurationError` if there is none with this id."""
    from server.pipeline.run_replay import RunReplay
    from server.storage import migrate
    from server.storage.alerts import AlertStore
    from server.storage.layouts import LayoutStore
    from server.storage.measurements.steps import StepReader
    from server.storage.runs import RunStore

    await migrate.upgrade(database)
    runs = RunStore(database)
    if await runs.version_of(run_id) is None:
        raise ConfigurationError(
            f"{run_id} is neither a directory nor a run; `spikewatch runs` lists the runs of this database"
        )
    replay = RunReplay(StepReader(database, LayoutStore(database)), runs, AlertStore(database))
    return await replay.of_run(run_id, sensitivity, is_over=lambda: False)


def _print(replay: answers.Replay) -> None:
    for title, alerts, total in (
        ("Would have been told", replay.would, replay.would_count),
        ("Was told", replay.told, len(replay.told)),
    ):
        print(f"{title}:")
        if alerts:
            rows = [(str(one.step), one.level, one.title, _details(one)) for one in alerts]
            print_table(("STEP", "LEVEL", "TITLE", ""), rows)
        else:
            print("nothing")
        if total > len(alerts):
            print(f"and {total - len(alerts)} more")
        print()
    step = "none" if replay.last_step is None else str(replay.last_step)
    print(f"{replay.records} records up to step {step}, sensitivity: {replay.sensitivity}")


def _details(alert: answers.Told) -> str:
    parts = []
    if alert.warned_at_step is not None and alert.warned_at_step != alert.step:
        parts.append(f"warning at step {alert.warned_at_step}")
    if alert.predicted_step is not None:
        parts.append(f"forecast {alert.predicted_step.low} to {alert.predicted_step.high}")
    if alert.result is not None:
        parts.append("did not come" if alert.result == "false" else alert.result)
    return ", ".join(parts)
