"""What a flooding run costs a calm one beside it: time from sending a step to its acknowledgement, in one server.

    python benchmarks/fairness.py [--steps N] [--floods N]

The server is a process of its own. A calm run sends one record at a time, alone and then beside runs that send batches
of 256 KiB as fast as they are acknowledged.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from client_sdk.protocol import Record  # noqa: E402
from tests.support.embedded import Embedded, embedded  # noqa: E402
from tests.support.writer import Writer, record  # noqa: E402

PACE = 0.02  # seconds between an acknowledgement and the next step
FLOOD = """
import sys; sys.path.insert(0, sys.argv[4])
from benchmarks.fairness import flood
flood(sys.argv[1], sys.argv[2], sys.argv[3])
"""
BATCH = 256  # records of about 1 KiB


def flood(url: str, token: str, name: str) -> None:
    """Until the process is ended."""
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
    """Milliseconds to each acknowledgement."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--floods", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, embedded(Path(directory)) as server:
        _print("alone", calm(server, "alone", options.steps))
        floods = [
            subprocess.Popen(
                [sys.executable, "-c", FLOOD, server.url, server.token, f"flood{number}", str(ROOT)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(options.floods)
        ]
        try:
            for process in floods:
                assert process.stdout is not None
                process.stdout.readline()
            begin = time.monotonic()
            times = calm(server, "calm", options.steps)
            seconds = time.monotonic() - begin
            with server.api() as api:
                steps = [api.get(f"/runs/flood{number}").json()["last_step"] for number in range(options.floods)]
        finally:
            for process in floods:
                process.kill()
                process.communicate()
        _print(f"beside {options.floods} floods", times)
        print(f"the floods committed {sum(steps):,} records in {seconds:.1f} s")


def _print(name: str, times: list[float]) -> None:
    cuts = statistics.quantiles(times, n=100)
    print(f"{name:<18} p50 {cuts[49]:7.1f} ms   p99 {cuts[98]:7.1f} ms   worst {max(times):7.1f} ms")


def _open(url: str, token: str) -> ClientConnection:
    address = url.replace("http", "ws", 1) + "/api/v1/ingest"
    return connect(address, additional_headers={"Authorization": f"Bearer {token}"}, compression=None, max_queue=None)


if __name__ == "__main__":
    main()
