"""The command line ``spikewatch …``. Each command is a few lines over the rooms below; it owns texts and exit codes.

Commands that serve import `server.serving` themselves: the others answer in half the time without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from client_sdk import answers
from client_sdk.protocol import MAX_NAME_CHARS
from server import logs
from server.allocator import limit_arenas
from server.auth.token_file import load_token_file, write_token_file
from server.auth.tokens import digest_of, new_token
from server.config import LOOPBACK_HOSTS, Config
from server.errors import ConfigurationError, ServerError
from server.models import Scope
from server.storage import migrate as migrations
from server.storage.database import Database, parse_url
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.measurements.integrity import Doctor
from server.storage.runs import RunStore
from server.storage.tokens import TokenStore

if TYPE_CHECKING:
    from server.serving.service import Service

Result = TypeVar("Result")

EXIT_UNUSABLE = 2
"""Settings, port or database cannot be used."""
EXIT_DAMAGED = 1

app = typer.Typer(
    help="See a loss spike coming.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
token_app = typer.Typer(help="Tokens for programs.", no_args_is_help=True)
app.add_typer(token_app, name="token")

Host = Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on. [default: 8787]")]
Data = Annotated[Path | None, typer.Option(help="Directory of the data. [default: ~/.spikewatch/data]")]


def main() -> None:
    """The entry point of the package."""
    if os.getpid() == 1:
        # The kernel spares the first process of a container every signal that it does not handle, `docker stop` too.
        signal.signal(signal.SIGTERM, _end)
    limit_arenas()  # before a library that starts a thread is imported: the arena of that one would be shared, too
    logs.configure("text", "warning")
    app()


@app.command()
def up(host: Host = None, port: Port = None, data: Data = None) -> None:
    """Run everything in this process: server, database file, dashboard."""
    from server.serving.service import Service

    with _one_line_errors():
        config = _config(host=host, port=port, data=data)
        service = Service(config, migrate=True)
        _serve_embedded(service)


@app.command("serve")
def serve_command() -> None:
    """Run the server alone, with settings from the environment (SPIKEWATCH_…)."""
    from server.serving.service import serve

    with _one_line_errors():
        config = _config(dashboard=False)
        serve(config, migrate=False, on_ready=lambda ready: print(f"Spikewatch serves {ready.open_url}", flush=True))


@app.command()
def dashboard(host: Host = None, port: Port = None) -> None:
    """Run the dashboard alone: SPIKEWATCH_URL names the server, whose tokens log you in."""
    from server.serving.dashboard_service import serve_dashboard

    with _one_line_errors():
        serve_dashboard(_config(host=host, port=port), lambda url: print(f"The dashboard is at {url}", flush=True))


@app.command("login-url")
def login_url() -> None:
    """Print the address that logs a browser in: SPIKEWATCH_PUBLIC_URL with the token SPIKEWATCH_ADMIN_TOKEN."""
    with _one_line_errors():
        config = _config()
        if config.admin_token is None:
            raise ConfigurationError("there is no SPIKEWATCH_ADMIN_TOKEN here; `spikewatch up` prints its own address")
        print(f"{config.open_url}/?token={config.admin_token}")


@app.command()
def migrate() -> None:
    """Bring the schema of the database up to date."""
    with _one_line_errors():
        _with_database(_config(), migrations.upgrade)
        print("The schema is up to date.")


@token_app.command("create")
def create_token(
    scope: Annotated[Scope, typer.Option(help="What it allows; each scope includes the one before.")],
    project: Annotated[str | None, typer.Option(help="The one project that it opens. [default: all]")] = None,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    data: Data = None,
) -> None:
    """Make a token and print it once; the database keeps its hash alone."""
    token = new_token()

    async def create(database: Database) -> None:
        await migrations.upgrade(database)
        await TokenStore(database).create(digest_of(token), scope, project, label, time.time())

    with _one_line_errors():
        if project is not None and not 0 < len(project) <= MAX_NAME_CHARS:
            raise ConfigurationError(f"--project: 1 … {MAX_NAME_CHARS} characters")
        _with_database(_config(data=data), create)
        print(token)


@token_app.command("list")
def list_tokens(data: Data = None) -> None:
    """Every token: what it opens, and when it was used last. Secrets are not kept, so none is shown."""

    async def read(database: Database) -> Sequence[answers.Token]:
        await migrations.upgrade(database)
        return await TokenStore(database).all(None)

    with _one_line_errors():
        found = _with_database(_config(data=data), read)
    if not found:
        print("No tokens yet: `spikewatch token create` makes one.")
        return
    rows = [("ID", "SCOPE", "PROJECT", "LABEL", "CREATED", "LAST USED", "STATE")]
    for token in found:
        created, used = _day(token.created_at), _day(token.last_used_at)
        state = "valid" if token.revoked_at is None else f"revoked {_day(token.revoked_at)}"
        project = token.project if token.project is not None else "(all)"
        rows.append((str(token.id), token.scope, project, token.label, created, used, state))
    _print_table(rows)


@token_app.command("revoke")
def revoke_token(
    number: Annotated[int, typer.Argument(metavar="ID", help="`spikewatch token list` tells it.")], data: Data = None
) -> None:
    """End a token, and the logins that it opened. Running servers close its connections within seconds."""

    async def revoke(database: Database) -> bool:
        await migrations.upgrade(database)
        return await TokenStore(database).revoke(number, time.time())

    with _one_line_errors():
        if not _with_database(_config(data=data), revoke):
            raise ConfigurationError(f"there is no token {number} to revoke; `spikewatch token list` shows them")
        print(f"The token {number} is revoked.")


@app.command()
def runs(
    project: Annotated[str | None, typer.Option(help="Only this project.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="The newest so many.")] = 20,
    data: Data = None,
) -> None:
    """List the newest runs."""

    async def read(database: Database) -> Sequence[answers.RunSummary]:
        await migrations.upgrade(database)
        fleet = FleetQuery(database, RunStore(database), LayoutStore(database))
        return (await fleet.page(project=project, state=None, limit=limit, cursor=None)).runs

    with _one_line_errors():
        config = _config(data=data)
        found = _with_database(config if data is None else _existing(config), read)
    if not found:
        print("No runs yet.")
        return
    rows = [("RUN", "PROJECT", "NAME", "STATE", "STEP", "LOSS", "STAGE", "ALERTS")]
    for run in found:
        loss = "" if run.loss is None else f"{run.loss:.4g}"
        step = "" if run.last_step is None else str(run.last_step)
        rows.append(
            (
                run.id,
                run.project,
                run.name,
                run.state,
                step,
                loss,
                run.stage or "",
                str(run.open_alerts),
            )
        )
    _print_table(rows)


@app.command()
def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Make again what can be made again, and mark the rest as lost.")
    ] = False,
    data: Data = None,
) -> None:
    """Read every stored measurement and name what is damaged. Exit code 1 while something is."""

    async def examine(database: Database) -> int:
        await migrations.upgrade(database)
        left = 0
        async for damage in Doctor(database).examine(repair=repair):
            run = f"run {damage.run_id}: " if damage.run_id else ""
            print(
                f"{run}{damage.where}: {damage.problem}" + (f"; {damage.remedy}" if damage.remedy else ""), flush=True
            )
            left += not damage.remedy
        return left

    with _one_line_errors():
        left = _with_database(_existing(_config(data=data)), examine)
    print(
        "Everything is readable."
        if left == 0
        else f"{left} damaged; `spikewatch doctor --repair` does what can be done."
    )
    raise typer.Exit(EXIT_DAMAGED if left else 0)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Id of the run; `spikewatch runs` lists them.")],
    out: Annotated[Path, typer.Option(help="File to write: .zip for everything, .parquet or .csv for the steps.")],
    layers: Annotated[bool, typer.Option(help="In a CSV: the layers, a row for each step and layer.")] = False,
    data: Data = None,
) -> None:
    """Write a run into a file: everything, or every step of it. An existing file is replaced."""
    from server.transfers import export_run

    with _one_line_errors():
        rows = _with_database(
            _existing(_config(data=data)), lambda database: export_run(database, run, out, layers=layers)
        )
        print(f"{out}: {rows} rows")


@app.command("import")
def import_command(
    paths: Annotated[
        list[Path], typer.Argument(help="Folders or files: TensorBoard events, .wandb, .csv, .parquet, .zip.")
    ],
    project: Annotated[str | None, typer.Option(help="Where the runs go. [default: theirs, or `imported`]")] = None,
    rename: Annotated[list[str] | None, typer.Option(help="OLD=NEW: a scalar that means, say, `loss`.")] = None,
    step_column: Annotated[str | None, typer.Option(help="The column of steps, where it is not found.")] = None,
    data: Data = None,
) -> None:
    """Make runs of the logs of other tools. The same file again changes nothing."""
    from server.transfers import import_paths

    with _one_line_errors():
        config = _config(data=data)
        renames = _renames(rename or [])
        broken = _with_database(
            config,
            lambda database: import_paths(
                config, database, paths, project=project, renames=renames, step_column=step_column
            ),
        )
    if broken:
        raise typer.Exit(EXIT_UNUSABLE)


@app.command()
def delete(
    run: Annotated[str, typer.Argument(help="Id of the run; `spikewatch runs` lists them.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data: Data = None,
) -> None:
    """Delete a run for good, and give its space back."""
    from server.transfers import delete_run

    if not yes:
        typer.confirm(f"Delete the run {run} for good?", abort=True)
    with _one_line_errors():
        _with_database(_existing(_config(data=data)), lambda database: delete_run(database, run))
        print(f"The run {run} is deleted.")


@app.command()
def demo(exit_after: Annotated[bool, typer.Option("--exit", help="End after the summary.")] = False) -> None:
    """Train three small models for real and watch them: one spikes, one is healthy, one meets a bad batch."""
    from server.demo.main import run_demo

    raise typer.Exit(run_demo(exit_after))


@app.command()
def evaluate(
    directory: Annotated[
        Path | None, typer.Argument(help="Recorded runs (*.npz). [default: those of the package]")
    ] = None,
) -> None:
    """Score the detectors on recorded runs."""
    from server.evaluation.evaluate import main as evaluate_main

    raise typer.Exit(evaluate_main(directory))


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    # Names come from users: whatever is not printable would reach the terminal as a command.
    safe = [
        ["".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cell) for cell in row] for row in rows
    ]
    widths = [max(len(row[column]) for row in safe) for column in range(len(safe[0]))]
    for row in safe:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _day(when: float | None) -> str:
    return "never" if when is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _renames(given: list[str]) -> dict[str, str]:
    pairs = [item.rpartition("=") for item in given]
    for old, _, new in pairs:
        if not old or not new:
            raise ConfigurationError("--rename is OLD=NEW, for example --rename train/objective=loss")
    return {old: new for old, _, new in pairs}


def _serve_embedded(service: Service) -> None:
    """Serve with a token of its own, and leave it where SDKs on this machine find it."""
    config = service.config
    try:
        token = config.admin_token or load_token_file(config.admin_token_file)
        write_token_file(config.token_file, token)
    except OSError as error:
        raise ConfigurationError(f"the token file {error.filename} cannot be used ({error.strerror})") from error
    service.config = config.with_admin_token(token)

    def announce(ready: Config) -> None:
        print(f"Spikewatch is up. Open {ready.open_url}/?token={token}", flush=True)
        if ready.host not in LOOPBACK_HOSTS:
            print(f"It listens on {ready.host}:{ready.port}; every address asks for the token.", flush=True)

    try:
        service.run(announce)
    finally:
        with contextlib.suppress(OSError):
            config.token_file.unlink(missing_ok=True)


def _config(**given: Any) -> Config:
    """Settings from the environment, with what the command line gave on top."""
    try:
        config = Config(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise ConfigurationError(f"SPIKEWATCH_{name}: {first['msg']}") from error
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    logs.configure(config.log_format, config.log_level)
    return config


def _existing(config: Config) -> Config:
    """Commands that look at what there is make no new database where somebody mistyped its place."""
    url = parse_url(config.resolved_database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        raise ConfigurationError(f"there is no database {url.database}; --data or SPIKEWATCH_DATA says where it is")
    return config


def _with_database(config: Config, use: Callable[[Database], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        database = Database(config.resolved_database_url)
        try:
            return await use(database)
        finally:
            await database.close()

    return asyncio.run(run())


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """What the user can put right is one line on stderr and exit code 2, never a traceback."""
    try:
        yield
    except ServerError as error:
        print(f"spikewatch: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_UNUSABLE) from error
