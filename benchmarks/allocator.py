"""Compares settings of the C library's allocator by the memory that a server keeps after its load.

    python -m benchmarks.allocator [--bursts 4]

One server per setting runs at the same time. Each gets the same bursts of load: eight concurrent writers with frames of
128 steps of 300 layers × 4 statistics, and heatmap queries. The table shows the anonymous memory of each process 25
seconds after each burst, and its largest value during the bursts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping

import httpx
import numpy as np
from websockets.asyncio.client import connect

from benchmarks.event_loop import COLUMNS, FRAME_STEPS, LAYERS, TOKEN, TRIM
from client_sdk.protocol import PROTOCOL_VERSION, Batch, Hello, Layout, Record, encode
from tests.support.processes import anonymous_mib

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "MALLOC_ARENA_MAX=1 and malloc_trim every 20 s": {"MALLOC_ARENA_MAX": "1", TRIM: "1"},
    "MALLOC_ARENA_MAX=1": {"MALLOC_ARENA_MAX": "1"},
    "MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=131072": {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": "131072",
    },
    "MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=131072": {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "131072",
    },
}
WRITERS, FRAMES = 8, 6
REST = 25.0  # seconds
STATISTICS = ("grad_norm", "update_norm", "weight_norm", "update_ratio")


class Server:
    """A server process with one setting."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, port: int) -> None:
        self.name = name
        self.process = process
        self.port = port
        self.peak = 0.0
        self.rested: list[float] = []

    @classmethod
    async def start(cls, name: str, home: str) -> Server:
        """Start a server and return it when it is ready."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.event_loop", "--serve", "uvloop", "--home", home,
            env={**kept, **SETTINGS[name]}, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        return cls(name, process, int(await process.stdout.readline()))

    def look(self) -> float:
        """Return the anonymous memory in MiB, and keep the largest."""
        mib = anonymous_mib(self.process.pid)
        self.peak = max(self.peak, mib)
        return mib

    async def burst(self, number: int) -> None:
        """Serve one burst of load."""
        async with asyncio.TaskGroup() as group:
            for writer in range(WRITERS):
                group.create_task(self._write(f"run-{number}-{writer}"))
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}/api/v1", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60
        ) as api:
            for writer in range(WRITERS):
                (await api.get(f"/runs/run-{number}-{writer}/heatmap", params={"stat": "grad_norm"})).raise_for_status()
                self.look()

    async def _write(self, run_id: str) -> None:
        layout = Layout(id=0, layers=tuple(f"layer{n}" for n in range(LAYERS)), statistics=STATISTICS)
        random = np.random.default_rng(len(run_id))
        async with connect(
            f"ws://127.0.0.1:{self.port}/api/v1/ingest",
            additional_headers={"Authorization": f"Bearer {TOKEN}"},
            compression=None,
            proxy=None,
        ) as socket:
            hello = Hello(version=PROTOCOL_VERSION, run_id=run_id, writer="w", project="p", layouts=(layout,))
            await socket.send(encode(hello))
            await socket.recv()
            for number in range(FRAMES):
                blocks = random.lognormal(size=(FRAME_STEPS, LAYERS * COLUMNS)).astype("<f4")
                records = tuple(
                    Record(step=step, time=float(step), scalars={"loss": 1.0}, layout=0, block=blocks[at].tobytes())
                    for at, step in enumerate(range(number * FRAME_STEPS, (number + 1) * FRAME_STEPS))
                )
                await socket.send(encode(Batch(first_seq=number * FRAME_STEPS + 1, records=records)))
                await socket.recv()
                self.look()


async def compare(bursts: int) -> None:
    """Run all settings and print the table."""
    with tempfile.TemporaryDirectory() as home:
        servers = [await Server.start(name, f"{home}/{at}") for at, name in enumerate(SETTINGS)]
        try:
            for number in range(bursts):
                for server in servers:
                    await server.burst(number)
                await asyncio.sleep(REST)
                for server in servers:
                    server.rested.append(server.look())
            print("| setting | " + " | ".join(f"after burst {n + 1}" for n in range(bursts)) + " | largest |")
            print("|---|" + "---|" * (bursts + 1))
            for server in servers:
                print(
                    f"| `{server.name}` | "
                    + " | ".join(f"{mib:.0f}" for mib in server.rested)
                    + f" | {server.peak:.0f} |"
                )
        finally:
            for server in servers:
                server.process.terminate()
                await server.process.wait()


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bursts", type=int, default=4)
    asyncio.run(compare(parser.parse_args().bursts))


if __name__ == "__main__":
    main()
