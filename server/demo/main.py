"""Runner of the demo: the embedded server, three trainings in their own processes, progress, and a judged summary.

All files are in a temporary directory, which is removed at the end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import httpx
from rich.console import Console
from rich.live import Live
from rich.text import Text

from client_sdk.vocabulary import AlertLevel, RunState
from server.demo.cases import MODULES, TANH_NET
from server.demo.judge import JUDGES, Judgement
from server.demo.progress import lines
from server.demo.timeline import timeline

PORT: Final = 8787
START_DEADLINE: Final = 120.0  # seconds until the server must answer
SETTLE_DEADLINE: Final = 20.0  # seconds after the last training for the last verdicts
REFRESH_INTERVAL: Final = 0.5  # seconds between progress lines
STOP_DEADLINE: Final = 10.0  # seconds for a child to end before it is killed


def free_port(first: int) -> int:
    """Return the first free loopback port from `first` on. Raises `OSError` if a hundred ports are taken."""
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {first} and {first + 99}")


@contextmanager
def child(arguments: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that ends with the block, whatever happens in it. Its output goes to the file `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only this process, which ends the children in order
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class DemoError(Exception):
    """The demo could not be run. The text gives the reason."""


class Api:
    """Client of the few HTTP endpoints that the demo needs."""

    def __init__(self, url: str, token: str) -> None:
        self._http = httpx.Client(
            base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=10.0, trust_env=False
        )

    def runs(self) -> dict[str, dict[str, Any]]:
        """Return the run summaries by name."""
        answer = self._http.get("/runs").raise_for_status().json()
        return {run["name"]: run for run in answer["runs"]}

    def alerts(self, run_id: str) -> list[dict[str, Any]]:
        """Return all alerts of a run in the order of their steps."""
        answer: list[dict[str, Any]] = self._http.get("/alerts", params={"run": run_id}).raise_for_status().json()
        return sorted(answer, key=lambda alert: alert["step"])

    def notifications(self, alert_id: str) -> list[dict[str, Any]]:
        """Return the notifications about an alert."""
        answer: list[dict[str, Any]] = self._http.get(f"/alerts/{alert_id}/notifications").raise_for_status().json()
        return answer

    def notify_from_watch(self) -> None:
        """Let every channel report alerts from level watch on, so that the demo shows all of them."""
        for channel in self._http.get("/channels").raise_for_status().json()["channels"]:
            body = {key: channel[key] for key in ("name", "kind", "project", "kinds", "enabled", "settings")}
            self._http.put(
                f"/channels/{channel['id']}", json={**body, "min_level": AlertLevel.WATCH}
            ).raise_for_status()

    def losses(self, run_id: str) -> tuple[list[int], list[float | None]]:
        """Return all steps of a run and their losses."""
        answer = self._http.get(f"/runs/{run_id}/series", params={"keys": "loss", "points": 10_000})
        series = answer.raise_for_status().json()["series"]["loss"]
        return series["step"], series["max"]


def wait_for_server(url: str, home: Path, port: int, process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the server answers and return its token. Raises `DemoError` with the end of its log otherwise."""
    deadline = time.monotonic() + START_DEADLINE
    token_file = home / f"server-{port}.token"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/healthz", timeout=2.0, trust_env=False).status_code == 200:
                return token_file.read_text(encoding="utf-8").strip()
        except (httpx.TransportError, FileNotFoundError):
            pass
        time.sleep(0.1)
    raise DemoError(f"the server did not start:\n{tail(log)}")


def tail(log: Path, count: int = 15) -> str:
    """Return the last lines of a log file."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def progress(runs: dict[str, dict[str, Any]]) -> Text:
    """Return the progress lines, each cut at the width of the terminal."""
    return Text("\n".join(lines(runs)), no_wrap=True, overflow="ellipsis")


def follow(api: Api, trainings: dict[str, subprocess.Popen[bytes]], console: Console, work: Path) -> None:
    """Show a progress line per run until every training ended. Raises `DemoError` if one fails."""
    with Live(console=console, auto_refresh=False, transient=False) as live:
        printed = 0.0
        while any(process.poll() is None for process in trainings.values()):
            runs = api.runs()
            if console.is_terminal:
                live.update(progress(runs), refresh=True)
            elif time.monotonic() - printed > 10:
                printed = time.monotonic()
                console.print("\n".join(lines(runs)), highlight=False, soft_wrap=True)
            time.sleep(REFRESH_INTERVAL)
        if console.is_terminal:
            live.update(progress(api.runs()), refresh=True)
    for name, process in trainings.items():
        if process.returncode:
            raise DemoError(f"the training {name} ended with code {process.returncode}:\n{tail(work / f'{name}.log')}")


def judge(api: Api) -> list[Judgement]:
    """Return the judgements once the server has finished with every run, or at a deadline."""
    deadline = time.monotonic() + SETTLE_DEADLINE
    while True:
        runs = api.runs()
        finished = {name for name, run in runs.items() if run["state"] == RunState.FINISHED}
        judgements = [
            JUDGES[name](api.alerts(runs[name]["id"]), *api.losses(runs[name]["id"]))
            for name in MODULES
            if name in runs
        ]
        settled = len(finished) == len(MODULES) and all(judgement.held for judgement in judgements)
        if settled or time.monotonic() > deadline:
            return judgements
        time.sleep(REFRESH_INTERVAL)


def spike_timeline(api: Api) -> list[str]:
    """Return the timeline of the spike of tanh-net."""
    run = api.runs().get(TANH_NET)
    if run is None:
        return []
    return timeline([(alert, api.notifications(alert["id"])) for alert in api.alerts(run["id"])])


def run_demo(exit_after: bool = False) -> int:
    """Run the demo. Return 0 if all three outcomes held, 1 if one did not, and 2 if it could not be run."""
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="spikewatch-demo-") as directory:
            return _run_in(Path(directory), console, exit_after)
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130
    except (DemoError, OSError, httpx.HTTPError) as error:
        console.print(f"spikewatch demo: {error}", style="red", markup=False, highlight=False)
        return 2


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run_in(work: Path, console: Console, exit_after: bool) -> int:
    port = free_port(PORT)
    url = f"http://127.0.0.1:{port}"
    server_log = work / "server.log"
    with child(
        ["-c", "from server.cli import main; main()", "up", "--port", str(port), "--data", str(work / "data")],
        {"SPIKEWATCH_HOME": str(work)},
        server_log,
    ) as server:
        token = wait_for_server(url, work, port, server, server_log)
        console.print(f"\n  Open [bold]{url}/?token={token}[/bold]\n", highlight=False, soft_wrap=True)
        api = Api(url, token)
        api.notify_from_watch()
        environment = {
            "SPIKEWATCH_URL": url,
            "SPIKEWATCH_TOKEN": token,
            "SPIKEWATCH_DIR": str(work / "spool"),
            "OMP_NUM_THREADS": "1",  # three trainings and a server share the machine
        }
        trainings: dict[str, subprocess.Popen[bytes]] = {}
        with _trainings(environment, work, trainings):
            follow(api, trainings, console, work)
            judgements = judge(api)
        console.print()
        for judgement in judgements:
            mark = "[green]✓[/green]" if judgement.held else "[red]✗[/red]"
            console.print(
                f"  {mark} [bold]{judgement.run}[/bold]: {judgement.sentence}", highlight=False, soft_wrap=True
            )
        for text in spike_timeline(api):
            console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)
        held = len(judgements) == len(MODULES) and all(judgement.held for judgement in judgements)
        if not exit_after:
            console.print(f"\n  The dashboard stays available at {url} until you press Ctrl-C.", highlight=False)
            server.wait()
    return 0 if held else 1


@contextmanager
def _trainings(environment: dict[str, str], work: Path, started: dict[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, (module, _) in MODULES.items():
            started[name] = stack.enter_context(child(["-m", module], environment, work / f"{name}.log"))
        yield
