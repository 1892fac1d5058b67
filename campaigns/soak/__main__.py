"""``python -m campaigns.soak [--minutes 30] [--rate 50]``: measure the memory of trainer and server over a long run.

A trainer logs at a fixed rate into `spikewatch up`. An open page is simulated: the live socket is read, and the last
1,000 steps are queried every five seconds. The program prints the memory that both processes have allocated and its
trend, and exits with 1 if it is not flat or a record is missing. Pages of mapped files are not counted, because the
trainer maps its spool, 8 MiB a file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from campaigns.soak.trend import trend
from tests.support.embedded import Embedded, embedded
from tests.support.processes import anonymous_mib

SAMPLE_EVERY = 5.0  # seconds
ROWS = 12  # rows of the table
WINDOW = 1_000  # steps that the open page shows
CACHE_BYTES = 16 * 1024 * 1024  # small enough to be full long before the second half


def main() -> int:
    """Run the soak that the command line describes and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=50.0, help="steps a second")
    options = parser.parse_args()
    os.environ["SPIKEWATCH_CACHE_BYTES"] = str(CACHE_BYTES)
    with tempfile.TemporaryDirectory(prefix="spikewatch-soak-") as directory, embedded(Path(directory)) as server:
        return _soak(server, Path(directory), options.minutes, options.rate)


def _soak(server: Embedded, directory: Path, minutes: float, rate: float) -> int:
    environment = os.environ | server.environment | {"SPIKEWATCH_DIR": str(directory / "spool")}
    command = [sys.executable, "-m", "campaigns.soak.trainer", str(rate)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdin is not None
        assert trainer.stdout is not None
        run_id = trainer.stdout.readline().strip()
        try:
            with _open_page(server, run_id):
                at, of_trainer, of_server = _sample(server, trainer.pid, run_id, minutes)
        except (httpx.TransportError, OSError):
            print(f"the server has ended with {server.process.poll()}:\n{(directory / 'up.log').read_text()}")
            raise
        status = _end(trainer.stdin, trainer.stdout)
    with server.api() as api:
        run = api.get(f"/runs/{run_id}").json()
    print(f"soak: {minutes:g} minutes at {rate:g} steps/s, {status['logged']:,} records, run {run['state']}")
    print(f"{'minute':>8} {'trainer MiB':>12} {'server MiB':>12}")
    for row in range(ROWS + 1):
        index = round(row * (len(at) - 1) / ROWS)
        print(f"{at[index]:8.1f} {of_trainer[index]:12.1f} {of_server[index]:12.1f}")
    flat = True
    for name, memory in (("trainer", of_trainer), ("server", of_server)):
        found = trend(at, memory)
        flat = flat and found.is_flat
        print(
            f"{name}: second half {found.mean:.1f} MiB, slope {found.slope:+.3f} ± {found.margin:.3f} MiB/min, "
            f"{found.growth:+.2f} MiB in all: {'flat' if found.is_flat else 'GROWING'}"
        )
    complete = status["logged"] == status["acknowledged"] == run["last_step"] + 1 and status["dropped"] == 0
    print(f"logged {status['logged']:,}, acknowledged {status['acknowledged']:,}, dropped {status['dropped']}")
    print(f"warnings of the trainer: {status['warnings'] or 'none'}")
    return 0 if flat and complete else 1


def _sample(
    server: Embedded, trainer: int, run_id: str, minutes: float
) -> tuple[list[float], list[float], list[float]]:
    """Sample the memory and return the times in minutes, and the MiB of the trainer and of the server."""
    at, of_trainer, of_server = [], [], []
    begin = time.monotonic()
    while (now := time.monotonic() - begin) <= 60 * minutes:
        at.append(now / 60)
        of_trainer.append(anonymous_mib(trainer))
        of_server.append(anonymous_mib(server.process.pid))
        with server.api() as api:  # a new connection, as the server closes connections that are idle between samples
            _query_as_page(api, run_id)
        time.sleep(max(0.0, begin + SAMPLE_EVERY * len(at) - time.monotonic()))
    return at, of_trainer, of_server


def _query_as_page(api: httpx.Client, run_id: str) -> None:
    """Query what a page shows of the end of a run."""
    found = api.get(f"/runs/{run_id}")  # 404 until the trainer's hello has arrived
    last = found.json()["last_step"] or 0 if found.is_success else 0
    window = {"from": max(0, last - WINDOW), "to": last}
    api.get(f"/runs/{run_id}/series", params={"keys": "loss,lr", **window})
    api.get(f"/runs/{run_id}/heatmap", params={"stat": "grad_norm", **window})


@contextlib.contextmanager
def _open_page(server: Embedded, run_id: str) -> Iterator[None]:
    """Read the live socket of a run in a thread, as an open page does."""
    url = server.url.replace("http", "ws", 1) + f"/api/v1/live?runs={run_id}"
    with connect(url, additional_headers={"Authorization": f"Bearer {server.token}"}, compression=None) as socket:

        def read() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    socket.recv()

        thread = threading.Thread(target=read, name="page")
        thread.start()
        yield
        socket.close()
        thread.join(10)


def _end(stdin: IO[str], stdout: IO[str]) -> dict[str, int]:
    stdin.close()
    status: dict[str, int] = json.loads(stdout.readline())
    return status


if __name__ == "__main__":
    sys.exit(main())
