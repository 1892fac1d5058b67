"""Durable values per second, committed and acknowledged over the websocket, compared with other ways to store them.

    python -m benchmarks.ingest [--steps 8192] [--no-trackio]

Every way gets the same recorded values (300 layers × 4 statistics and a loss at each step), which must be durable when
the clock stops. They are measured one after another on the same machine, each in a few seconds:

* Spikewatch's server on SQLite and on Postgres: a separate process, one training, 128 steps a frame, frames encoded
  before the clock starts, at most 8 of them unacknowledged; detectors and compaction run meanwhile.
* Trackio's server: a separate process in its own environment (created once), `bulk_log` requests of 16 steps.
* The same Postgres with one row per metric (`executemany`, one transaction per step), and with bare `bytea` rows of
  230 KB, one transaction each, which shows the limit of the database if the values are not read.

A core-second is a second of processor time of the server's process, until its detectors have read what was
acknowledged. It does not include Postgres's own processes, and is not known for the ways that have no other server.
"Detected after" is the time for which the detectors went on reading when the last value was durable.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import httpx
import msgspec
import numpy as np
from sqlalchemy import make_url
from websockets.sync.client import connect

from benchmarks.long_run import STATISTICS, LongRun
from benchmarks.recordings import CACHE, load
from client_sdk.protocol import (
    PROTOCOL_VERSION,
    Ack,
    Batch,
    Error,
    Hello,
    Layout,
    Record,
    decode_server_message,
    encode,
)
from tests.support.postgres import Postgres

LAYERS = 300
VALUES = LAYERS * len(STATISTICS) + 1  # values of a step
FRAME_STEPS = 128
MAX_UNACKNOWLEDGED = 8  # frames
TRACKIO = "trackio==0.43.0"
TRACKIO_STEPS = 16  # steps of a request
ROW_BYTES = 230 * 1024
START_TIMEOUT = 120.0  # seconds
LAG = "spikewatch_follower_lag_seconds "
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurement of one way to store values."""

    name: str
    """Name in the table."""
    values: int
    """Number of values that were stored."""
    seconds: float
    """Seconds until they were durable."""
    core_seconds: float | None = None
    """Processor time of the server in seconds, if it is known."""
    detected_after: float | None = None
    """Seconds from the last acknowledgement until the detectors had read everything."""

    @property
    def rate(self) -> float:
        """Values per second."""
        return self.values / self.seconds


def records(run: LongRun, first: int, count: int) -> list[Record]:
    """Return consecutive steps as the SDK sends them."""
    columns = run.columns(first, first + count)
    statistics = columns.blocks[0].statistics
    cube = np.stack([statistics[name] for name in STATISTICS], axis=2).transpose(1, 0, 2)  # steps × layers × statistics
    loss = columns.scalars[run.names[0]].values
    return [
        Record(
            step=first + at,
            time=float(first + at),
            scalars={"loss": float(loss[at])},
            layout=0,
            block=np.ascontiguousarray(cube[at], "<f4").tobytes(),
        )
        for at in range(count)
    ]


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(command: list[str], environment: Mapping[str, str], ready: str) -> Iterator[int]:
    """Run a server process and yield its id once the URL ``ready`` answers. Raises `RuntimeError` if it never does."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
        try:
            until = time.monotonic() + START_TIMEOUT
            while True:
                try:
                    urllib.request.urlopen(ready, timeout=5).close()
                    break
                except urllib.error.HTTPError:
                    break
                except OSError as error:
                    if process.poll() is not None or time.monotonic() > until:
                        log.seek(0)
                        raise RuntimeError(log.read().decode()) from error
                    time.sleep(0.2)
            yield process.pid
        finally:
            process.terminate()
            process.wait(60)


def core_seconds(pid: int) -> float:
    """Return the processor time of a process so far in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def timed(name: str, values: int, pid: int | None, work: Callable[[], None]) -> Measured:
    """Measure ``work``, which stores ``values`` values, and the processor time of the process ``pid``."""
    before = core_seconds(pid) if pid is not None else 0.0
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    spent = core_seconds(pid) - before if pid is not None else None
    return Measured(name=name, values=values, seconds=seconds, core_seconds=spent)


def spikewatch(run: LongRun, kind: str, database_url: str | None, steps: int) -> Measured:
    """Measure Spikewatch's server on the database at ``database_url``, or on SQLite if it is None."""
    frames = [
        encode(Batch(first_seq=first + 1, records=tuple(records(run, first, FRAME_STEPS))))
        for first in range(0, steps, FRAME_STEPS)
    ]
    token, port = secrets.token_urlsafe(24), free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        environment = {
            "SPIKEWATCH_HOME": home,
            "SPIKEWATCH_PORT": str(port),
            "SPIKEWATCH_ADMIN_TOKEN": token,
            **({} if database_url is None else {"SPIKEWATCH_DATABASE_URL": database_url}),
        }
        program = [sys.executable, "-c", "from server.cli import main; main()"]
        subprocess.run([*program, "migrate"], env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL)
        with (
            serving([*program, "serve"], environment, f"http://127.0.0.1:{port}/readyz") as pid,
            connect(
                f"ws://127.0.0.1:{port}/api/v1/ingest",
                additional_headers={"Authorization": f"Bearer {token}"},
                compression=None,
                max_size=None,
            ) as connection,
        ):
            layout = Layout(id=0, layers=run.layers, statistics=STATISTICS)
            hello = Hello(version=PROTOCOL_VERSION, run_id="run", writer="w", project="benchmark", layouts=(layout,))
            connection.send(encode(hello))
            connection.recv()

            def acknowledged() -> int:
                while True:
                    message = decode_server_message(bytes(connection.recv()))  # type: ignore[arg-type]
                    if isinstance(message, Error):
                        raise RuntimeError(message.message)
                    if isinstance(message, Ack):
                        return message.seq

            def send_all() -> None:
                durable = 0
                for number, frame in enumerate(frames):
                    while number * FRAME_STEPS - durable >= MAX_UNACKNOWLEDGED * FRAME_STEPS:
                        durable = acknowledged()
                    connection.send(frame)
                while durable < steps:
                    durable = acknowledged()

            before = core_seconds(pid)
            stored = timed(f"Spikewatch, {kind}", steps * VALUES, pid, send_all)
            detected_after = until_detected(port)
            return replace(stored, core_seconds=core_seconds(pid) - before, detected_after=detected_after)


def until_detected(port: int) -> float:
    """Wait until the server's detectors have read everything that is committed, and return the seconds that it took."""
    start = time.monotonic()
    while True:
        found = httpx.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text
        lag = next(line for line in found.splitlines() if line.startswith(LAG))
        if float(lag.rpartition(" ")[2]) == 0.0:
            return time.monotonic() - start
        if time.monotonic() - start > START_TIMEOUT:
            raise RuntimeError(f"the detectors lag by {lag}")
        time.sleep(0.02)


def trackio(run: LongRun, steps: int) -> Measured:
    """Measure Trackio's server, which is installed in its own environment first."""
    environment_directory = CACHE / "trackio"
    python = environment_directory / "bin" / "python"
    if not (environment_directory / ".installed").exists():
        print(f"installing {TRACKIO}, once", file=sys.stderr, flush=True)
        venv.create(environment_directory, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", TRACKIO], check=True)
        (environment_directory / ".installed").touch()
    token, port = secrets.token_urlsafe(24), free_port()
    program = "import trackio; trackio.show(open_browser=False, block_thread=True)"
    bodies = []
    for first in range(0, steps, TRACKIO_STEPS):
        logs = []
        for record in records(run, first, TRACKIO_STEPS):
            assert record.block is not None
            values = np.frombuffer(record.block, "<f4").tolist()
            metrics = {f"layer{at // 4}/{STATISTICS[at % 4]}": value for at, value in enumerate(values)}
            logs.append({"project": "p", "run": "r", "step": record.step, "metrics": {**metrics, **record.scalars}})
        bodies.append(msgspec.json.encode({"kwargs": {"logs": logs, "hf_token": None}}))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        environment = {
            "TRACKIO_DIR": home,
            "TRACKIO_WRITE_TOKEN": token,
            "GRADIO_SERVER_PORT": str(port),
            "PYTHONPATH": "",
        }
        with (
            serving([str(python), "-c", program], environment, f"http://127.0.0.1:{port}/") as pid,
            httpx.Client(headers={"X-Trackio-Write-Token": token}, timeout=300) as client,
        ):

            def send_all() -> None:
                for body in bodies:
                    answer = client.post(f"http://127.0.0.1:{port}/api/bulk_log", content=body)
                    answer.raise_for_status()

            return timed("Trackio 0.43, its server", steps * VALUES, pid, send_all)


def insert_rows(run: LongRun, database_url: str, steps: int) -> Measured:
    """Measure Postgres with one row per metric."""
    found = [
        [(record.step, number, float(value)) for number, value in enumerate(np.frombuffer(record.block or b"", "<f4"))]
        for record in records(run, 0, steps)
    ]

    async def insert() -> None:
        connection = await _connect(database_url)
        await connection.execute("CREATE TABLE metrics (step bigint, name integer, value double precision)")
        await connection.execute("CREATE INDEX ON metrics (name, step)")
        for rows in found:
            async with connection.transaction():
                await connection.executemany("INSERT INTO metrics VALUES ($1, $2, $3)", rows)
        await connection.close()

    return timed("Postgres, one row per metric", sum(map(len, found)), None, lambda: asyncio.run(insert()))


def insert_bytea(run: LongRun, database_url: str, steps: int) -> Measured:
    """Measure Postgres with bare `bytea` rows."""
    data = b"".join(record.block or b"" for record in records(run, 0, steps))
    found = [data[at : at + ROW_BYTES] for at in range(0, len(data), ROW_BYTES)]

    async def insert() -> None:
        connection = await _connect(database_url)
        await connection.execute("CREATE TABLE blobs (id bigserial PRIMARY KEY, data bytea)")
        for row in found:
            await connection.execute("INSERT INTO blobs (data) VALUES ($1)", row)
        await connection.close()

    return timed("Postgres, bare bytea of 230 KB", len(data) // 4, None, lambda: asyncio.run(insert()))


async def _connect(database_url: str) -> asyncpg.Connection:
    url = make_url(database_url)
    host = url.query.get("host", url.host)
    return await asyncpg.connect(host=host, user=url.username, database=url.database, port=url.query.get("port", 5432))


def show(measured: list[Measured]) -> None:
    """Print the table; the first measurement is the reference."""
    reference = measured[0]
    print(
        f"{'':32} {'values/s':>13} {'MB/s':>7} {'values/core-second':>21} {'× slower than SQLite':>23} "
        f"{'detected after':>15}"
    )
    for item in measured:
        core = "" if not item.core_seconds else f"{item.values / item.core_seconds:,.0f}"
        ratio = f"{reference.rate / item.rate:.2f} ×"
        detected = "" if item.detected_after is None else f"{item.detected_after:.2f} s"
        print(f"{item.name:32} {item.rate:13,.0f} {4e-6 * item.rate:7.1f} {core:>21} {ratio:>23} {detected:>15}")


def main() -> None:
    """Measure all ways and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=8_192, help="steps of the runs that Spikewatch stores")
    parser.add_argument("--no-trackio", action="store_true", help="leave out Trackio, which has to be installed")
    options = parser.parse_args()
    steps = max(FRAME_STEPS, options.steps // FRAME_STEPS * FRAME_STEPS)
    run = LongRun(load("transformer"), layers=LAYERS, scalar_count=1)
    measured = [spikewatch(run, "SQLite", None, steps)]
    postgres = Postgres()
    try:
        measured.append(spikewatch(run, "Postgres", postgres.create_database(), steps))
        measured.append(insert_rows(run, postgres.create_database(), min(steps, 64)))
        measured.append(insert_bytea(run, postgres.create_database(), min(steps, 4_096)))
    finally:
        postgres.stop()
    if not options.no_trackio:
        measured.append(trackio(run, min(steps, 256)))
    show(measured)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
