"""Runs `spikewatch up` in a process of its own, as a user starts it."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
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
        """Environment in which a training process finds this server."""
        return {"SPIKEWATCH_URL": self.url, "SPIKEWATCH_TOKEN": self.token}

    def api(self) -> httpx.Client:
        """Return a client of `/api/v1`; use it as a context manager."""
        return httpx.Client(
            base_url=f"{self.url}/api/v1",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=30,
            trust_env=False,
            verify=False,  # plain HTTP; reading the authorities takes 50 ms
        )


@contextlib.contextmanager
def embedded(home: Path, port: int = 0, **settings: object) -> Iterator[Embedded]:
    """Run `spikewatch up` with all its files below ``home``, and end it with SIGTERM, which must yield exit code 0.

    ``settings`` are settings of `server.config`, keyed by name.
    """
    given = {f"SPIKEWATCH_{name.upper()}": str(value) for name, value in settings.items()}
    log = home / "up.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*COMMAND, "up", "--port", str(port), "--data", str(home / "data")],
            env=os.environ | {"SPIKEWATCH_HOME": str(home)} | given,
            stdout=subprocess.PIPE,
            stderr=output,
        ) as process,
    ):
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
    """Return the URL that `up` prints once it serves."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], START_TIMEOUT)[0]:
        raise AssertionError(f"`spikewatch up` printed no URL: {log.read_text()}")
    for word in process.stdout.readline().decode().split():
        if word.startswith("http://"):
            return word
    raise AssertionError(f"`spikewatch up` ended with {process.wait(STOP_TIMEOUT)}: {log.read_text()}")
