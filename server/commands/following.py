"""The command that follows logs as they grow, and what `up --follow` shares with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands import reading
from server.commands.context import load_config, one_line_errors
from server.config import Config
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from client_sdk.protocol import Alert
    from server.following.background import BackgroundFollower
    from server.following.log_follower import LogFollower

DIRECTORY = "follow"
"""Folder below SPIKEWATCH_HOME with the positions in the followed logs."""

Url = Annotated[str | None, typer.Option(help="Address of the server. [default: SPIKEWATCH_URL, or this machine's]")]
IncludesOld = Annotated[
    bool, typer.Option("--all", help="In folders, also read logs that nobody has written to for an hour.")
]
Every = Annotated[float, typer.Option(min=0.02, max=60.0, help="Seconds between two looks at the files.")]


def follow(
    paths: reading.Logs,
    *,
    project: Annotated[
        str | None, typer.Option(help="Project of the runs. [default: that of the log, or `followed`]")
    ] = None,
    url: Url = None,
    rename: reading.Rename = None,
    step_column: reading.StepColumn = None,
    time_column: reading.TimeColumn = None,
    run_column: reading.RunColumn = None,
    metric_column: reading.MetricColumn = None,
    value_column: reading.ValueColumn = None,
    step_by_row: reading.StepByRow = False,
    pattern: reading.Pattern = None,
    includes_old: IncludesOld = False,
    every: Every = 0.1,
) -> None:
    """Follow the logs of trainings as they grow, and send what they hold to a server, which alerts as for any run."""
    from server.following.address import Address
    from server.following.log_follower import FollowOptions, LogFollower

    with one_line_errors():
        config = load_config()
        for path in paths:
            require_place(path)
        options = FollowOptions(
            reading=reading.read_options(
                step_column=step_column,
                time_column=time_column,
                run_column=run_column,
                metric_column=metric_column,
                value_column=value_column,
                step_by_row=step_by_row,
                pattern=pattern,
            ),
            project=project,
            renames=reading.renames(rename),
            includes_old=includes_old,
            poll_every=every,
        )
        follower = LogFollower(
            paths,
            Address.resolve(url, config.home, os.environ),
            options,
            directory=config.home.expanduser() / DIRECTORY,
            note=tell,
            on_alert=AlertLines().show,
        )
        asyncio.run(_until_signalled(follower))


class EmbeddedFollower:
    """The follower of `up --follow`, which sends to the server of this process."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._background: BackgroundFollower | None = None

    def start(self, ready: Config) -> None:
        """Start following, once the server accepts connections."""
        from server.following.address import Address
        from server.following.background import BackgroundFollower
        from server.following.log_follower import FollowOptions, LogFollower

        follower = LogFollower(
            self._paths,
            Address(url=ready.api_url, token=ready.admin_token, home=ready.home.expanduser()),
            FollowOptions(),
            directory=ready.home.expanduser() / DIRECTORY,
            note=tell,
            on_alert=AlertLines().show,
            server=f"embedded {ready.data_directory.absolute()}",
        )
        self._background = BackgroundFollower(follower, tell)
        self._background.start()

    def stop(self) -> None:
        """Stop following the logs."""
        if self._background is not None:
            self._background.stop()


class AlertLines:
    """Prints a line for each alert that opens or becomes more severe."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}

    def show(self, run: str, alert: Alert) -> None:
        """Print an alert of a run unless it has been printed at this level, or is over."""
        if self._shown.get(alert.id) == alert.level or alert.closed_at is not None:
            return
        self._shown[alert.id] = alert.level
        print(f"{run}: {alert.level} at step {alert.step}: {alert.title}", flush=True)


def require_place(path: Path) -> None:
    """Raise `ConfigurationError` for a path that cannot come into being: its folder is missing too."""
    found = path.expanduser()
    if not found.exists() and not found.parent.is_dir():
        raise ConfigurationError(f"there is no {path}, and no folder {path.parent} in which it could appear")


def tell(text: str) -> None:
    """Print a line on stderr."""
    print(f"spikewatch: {text}", file=sys.stderr, flush=True)


async def _until_signalled(follower: LogFollower) -> None:
    following = asyncio.ensure_future(follower.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, following.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await following
