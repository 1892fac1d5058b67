"""Server processes on one database and one Redis server, to be paused and killed by tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.support.embedded import COMMAND, STOP_TIMEOUT
from tests.support.server import TOKEN


@dataclass(frozen=True, kw_only=True)
class Replica:
    """Running `spikewatch serve` process."""

    url: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def connect(self, path: str) -> ClientConnection:
        """Connect to a websocket below `/api/v1`. Use it as a context manager."""
        address = self.url.replace("http", "ws", 1) + f"/api/v1{path}"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return connect(address, additional_headers=headers, compression=None, max_size=None, max_queue=None)

    def api(self) -> httpx.Client:
        """Return a client of `/api/v1`. Use it as a context manager."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=30, trust_env=False, verify=False)

    def pause(self) -> None:
        """Stop the process: it answers nothing and keeps its state."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def replica(home: Path, name: str, **settings: str) -> Iterator[Replica]:
    """Run `spikewatch serve` without a dashboard and with these settings; its standard error goes to a file.

    The schema must be current.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SPIKEWATCH_")}
    given = {f"SPIKEWATCH_{key.upper()}": value for key, value in settings.items()}
    environment = {
        **kept,
        "SPIKEWATCH_HOME": str(home),
        "SPIKEWATCH_PORT": "0",
        "SPIKEWATCH_ADMIN_TOKEN": TOKEN,
        "SPIKEWATCH_DASHBOARD": "false",
        **given,
    }
    with (home / f"{name}.log").open("w") as log:
        process = subprocess.Popen([*COMMAND, "serve"], env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            words = process.stdout.readline().split()
            assert words, f"`spikewatch serve` did not start: {(home / f'{name}.log').read_text()}"
            yield Replica(url=words[-1], process=process)
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_TIMEOUT)
            process.stdout.close()
