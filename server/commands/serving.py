"""Commands that serve: the server, the dashboard, and the demo.

They import what they run themselves, so that the other commands start in half the time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.auth.token_file import load_token_file, write_token_file
from server.commands.context import Data, Host, Port, load_config, one_line_errors
from server.commands.following import EmbeddedFollower, require_place
from server.config import LOOPBACK_HOSTS, Config
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from server.serving.service import Service


def up(
    host: Host = None,
    port: Port = None,
    data: Data = None,
    follow: Annotated[
        list[Path] | None,
        typer.Option(help="Folder or file with logs that are followed as they grow. May be repeated."),
    ] = None,
) -> None:
    """Run everything in this process: server, database file and dashboard."""
    from server.serving.service import Service

    with one_line_errors():
        config = load_config(host=host, port=port, data=data)
        for path in follow or ():
            require_place(path)
        _serve_embedded(Service(config, migrate=True), follow or ())


def serve() -> None:
    """Run the server alone, with settings from the environment (SPIKEWATCH_…), listed in docs/reference/settings.md."""
    from server.serving.service import serve as serve_until_stopped

    with one_line_errors():
        config = load_config(dashboard=False)
        serve_until_stopped(
            config,
            migrate=False,
            on_ready=lambda ready: print(f"Spikewatch serves {ready.open_url}", flush=True),
        )


def dashboard(host: Host = None, port: Port = None) -> None:
    """Run the dashboard alone. SPIKEWATCH_URL names its server, whose tokens open it."""
    from server.serving.dashboard_service import serve_dashboard

    with one_line_errors():
        serve_dashboard(load_config(host=host, port=port), lambda url: print(f"The dashboard is at {url}", flush=True))


def login_url() -> None:
    """Print the address that logs a browser in: SPIKEWATCH_PUBLIC_URL with SPIKEWATCH_ADMIN_TOKEN."""
    with one_line_errors():
        config = load_config()
        if config.admin_token is None:
            raise ConfigurationError("SPIKEWATCH_ADMIN_TOKEN is not set; `spikewatch up` prints its own address")
        print(f"{config.open_url}/?token={config.admin_token}")


def demo(exit_after: Annotated[bool, typer.Option("--exit", help="Exit after the summary.")] = False) -> None:
    """Train three small models and watch them: one spikes, one is healthy, one meets a bad batch."""
    from server.demo.main import run_demo

    raise typer.Exit(run_demo(exit_after))


def _serve_embedded(service: Service, followed: Sequence[Path]) -> None:
    """Serve with an admin token, which is written to a file where SDKs on this machine find it.

    The logs below the ``followed`` paths are sent to this server.
    """
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
            print(f"It listens on {ready.host}:{ready.port}; every address requires the token.", flush=True)
        if followed:
            follower.start(ready)

    follower = EmbeddedFollower(followed)
    try:
        service.run(announce)
    finally:
        follower.stop()
        with contextlib.suppress(OSError):
            config.token_file.unlink(missing_ok=True)
