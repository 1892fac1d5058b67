"""The command line ``spikewatch``: its entry point and the list of its commands."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import typer

from server import logs
from server.commands import checking, data, evaluation, following, serving, tokens

app = typer.Typer(
    help="See a loss spike coming.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.command("up")(serving.up)
app.command("serve")(serving.serve)
app.command("dashboard")(serving.dashboard)
app.command("login-url")(serving.login_url)
app.command("migrate")(data.migrate)
app.command("runs")(data.runs)
app.command("doctor")(data.doctor)
app.command("export")(data.export)
app.command("import")(data.import_runs)
app.command("check")(checking.check)
app.command("follow")(following.follow)
app.command("delete")(data.delete)
app.command("demo")(serving.demo)
app.command("evaluate")(evaluation.evaluate)
app.add_typer(tokens.app, name="token")


def main() -> None:
    """Run the command that the arguments of the process name."""
    if os.getpid() == 1:
        # The kernel ignores signals to the first process of a container that have no handler, including `docker stop`.
        signal.signal(signal.SIGTERM, _exit)
    logs.configure("text", "warning")
    app()


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
