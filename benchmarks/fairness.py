"""Effect of flooding runs on a calm one: the time from sending a step to its acknowledgement, in one server.

    python -m benchmarks.fairness [--steps N] [--floods N] [--database sqlite|postgres]

The server is a separate process, on SQLite and then on a real Postgres. A calm run sends one record at a time, alone
and then alongside runs that send batches of 256 KiB as fast as they are acknowledged.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from benchmarks.databases import KINDS
from client_sdk.protocol import Record
from tests.support.embedded import Embedded, embedded
from tests.support.postgres import Postgres
from tests.support.writer import Writer, record

ROOT = Path(__file__).parents[1]
PACE = 0.02  # seconds between an acknowledgement and the next step
FLOOD = "import sys; from benchmarks.fairness import flood; flood(*sys.argv[1:])"
BATCH = 256  # records of about 1 KiB


def flood(url: str, token: str, name: str) -> None:
    """Send batches as fast as they are acknowledged, until the process is ended."""
    values = {f"metric_{n}": n / 7 for n in range(50)}
    with _open(url, token) as socket:
        writer = Writer(socket)
        writer.hello(name, name)
        print("ready", flush=True)
        while True:
            for _ in range(4):
                writer.send(*(Record(step=writer.seq + n, time=1.0, scalars=values) for n in range(BATCH)))
            writer.wait_for(writer.seq - 2 * BATCH)


def calm(server: Embedded, name: str, steps: int) -> list[float]:
    """Send ``steps`` records one at a time and return the milliseconds until each acknowledgement."""
    times = []
    with _open(server.url, server.token) as socket:
        writer = Writer(socket)
        writer.hello(name, name)
        for step in range(steps):
            time.sleep(PACE)
            begin = time.perf_counter()
            writer.commit(record(step))
            times.append(1_000 * (time.perf_counter() - begin))
    return times


def measure(kind: str, database_url: str | None, steps: int, floods: int) -> None:
    """Measure and print the rows of one kind of database."""
    given: dict[str, Any] = {} if database_url is None else {"database_url": database_url}
    with tempfile.TemporaryDirectory() as directory, embedded(Path(directory), **given) as server:
        alone = calm(server, "alone", steps)
        _print(f"{kind}, alone", alone)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", FLOOD, server.url, server.token, f"flood{number}"],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(floods)
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                process.stdout.readline()
            before, begin = _stored(server, floods), time.monotonic()
            times = calm(server, "calm", steps)
            after, seconds = _stored(server, floods), time.monotonic() - begin
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        _print(f"{kind}, with {floods} floods", times, alone)
        rates = [(end - start) / seconds for start, end in zip(before, after, strict=True)]
        shares = ", ".join(f"{rate:,.0f}" for rate in rates)
        print(f"{'':28}the floods stored {shares} records/s meanwhile")


def main() -> None:
    """Print the table for the databases that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--floods", type=int, default=2)
    parser.add_argument("--database", choices=KINDS, help="only this database (default: both)")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    columns = ("p50", "p99", "worst", "× p50", "× p99")
    print(f"{'milliseconds to the answer':28}" + "".join(f"{name:>9}" for name in columns), flush=True)
    for kind in KINDS if options.database is None else (options.database,):
        postgres = Postgres() if kind == "postgres" else None
        try:
            url = None if postgres is None else postgres.create_database()
            measure(kind, url, options.steps, options.floods)
        finally:
            if postgres is not None:
                postgres.stop()


def _stored(server: Embedded, floods: int) -> list[int]:
    with server.api() as api:
        return [api.get(f"/runs/flood{number}").json()["last_step"] or 0 for number in range(floods)]


def _print(name: str, times: list[float], alone: list[float] | None = None) -> None:
    figures = _figures(times)
    row = f"{name:28}" + "".join(f"{figure:9.1f}" for figure in figures)
    if alone is not None:
        row += "".join(f"{figure / own:9.1f}" for figure, own in zip(figures[:2], _figures(alone)[:2], strict=True))
    print(row, flush=True)


def _figures(times: list[float]) -> tuple[float, float, float]:
    cuts = statistics.quantiles(times, n=100)
    return cuts[49], cuts[98], max(times)


def _open(url: str, token: str) -> ClientConnection:
    address = url.replace("http", "ws", 1) + "/api/v1/ingest"
    return connect(address, additional_headers={"Authorization": f"Bearer {token}"}, compression=None, max_queue=None)


if __name__ == "__main__":
    main()
