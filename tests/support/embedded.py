"""The product as a user starts it: `spikewatch up` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

START_TIMEOUT = 60.0  # seconds
STOP_TIMEOUT = 20.0  # seconds
COMMAND = (sys.executable, "-c", "from server.cli import main; main()")


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A running `spikewatch up`."""

    url: str
    token: str
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """What a training process needs to find it."""
        return {"SPIKEWATCH_URL": self.url, "SPIKEWATCH_TOKEN": self.token}

    def api(self) -> httpx.Client:
        """A client of `/api/v1`; use it as a context manager."""
        return httpx.Client(
            base_url=f"{self.url}/api/v1",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=30,
            trust_env=False,
        )


@contextlib.contextmanager
def embedded(home: Path, port: int = 0, **settings: object) -> Iterator[Embedded]:
    """Start `spikewatch up` with everything below ``home``; ended by SIGTERM, which must leave exit code 0.

    ``settings``: of `server.config`, by name.
    """
    given = {f"SPIKEWATCH_{name.upper()}": str(value) for name, value in settings.items()}
    log = home / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, "up", "--port", str(port), "--data", str(home / "data")],
            env=os.environ | {"SPIKEWATCH_HOME": str(home)} | given,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            url, _, token = _printed_url(process, log).partition("/?token=")
            yield Embedded(url=url, token=token, process=process)
        finally:
            process.terminate()
            try:
                code = process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert code == 0, log.read_text()


def _printed_url(process: subprocess.Popen[bytes], log: Path) -> str:
    """The URL that `up` prints once it serves."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        words = log.read_text().split()
        found = [word for word in words if word.startswith("http://")]
        if found:
            return found[0]
        if process.poll() is not None:
            raise AssertionError(f"`spikewatch up` ended with {process.returncode}: {log.read_text()}")
        time.sleep(0.05)  # there is nothing to wait on but the process's own output
    raise AssertionError(f"`spikewatch up` printed no URL: {log.read_text()}")
