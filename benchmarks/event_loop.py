"""Compares asyncio's event loop with uvloop on the ingest path, side by side.

    python -m benchmarks.event_loop [--rounds 20]

Two servers run at the same time, one on each loop, each with its own SQLite database. In each round both serve the same
load, one after the other in alternating order, and the table shows the ratio uvloop / asyncio of the medians. Processor
time of the server process is the figure to look at: it depends little on other work of the machine.

* small frames: 16 writers, one step of one scalar per frame, each frame acknowledged before the next is sent.
* large frames: one writer, 128 steps of 300 layers × 4 statistics per frame.
* connection storm: the longest acknowledgement of a writer while 2,000 clients connect at once.
* idle connections: resident memory after 500 connections have each sent a few frames.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from client_sdk.protocol import PROTOCOL_VERSION, Batch, Hello, Layout, Record, encode
from server.config import Config
from server.serving import event_loop, service
from server.serving.listener import allow_open_files
from tests.support.processes import anonymous_mib

TICKS = os.sysconf("SC_CLK_TCK")
TOKEN = "sw_" + "benchmark" * 4
LOOPS = ("asyncio", "uvloop")
LAYERS, COLUMNS, FRAME_STEPS = 300, 4, 128
WRITERS, FRAMES = 16, 40
LARGE_FRAMES = 12
IDLE = 500
STORM = 2_000
TRIM = "BENCHMARK_MALLOC_TRIM"
"""Variable that makes a server call ``malloc_trim`` regularly; see `benchmarks.allocator`."""


def serve(loop: str, home: str) -> None:
    """Run a server on one of the loops and print its port when it is ready."""
    if loop == "asyncio":
        event_loop.new_event_loop = asyncio.new_event_loop
    if TRIM in os.environ:
        threading.Thread(target=trim_forever, daemon=True).start()
    config = Config(
        home=Path(home), data=Path(home), port=0, admin_token=TOKEN, dashboard=False,
        token_connections_per_second=100_000.0,
    )  # fmt: skip
    service.serve(config, on_ready=lambda ready: print(ready.port, flush=True))


def trim_forever() -> None:
    """Return free pages of the C library's allocator to the system every 20 seconds."""
    library = ctypes.CDLL(None)
    while True:
        time.sleep(20)
        library.malloc_trim(0)


def core_seconds(pid: int) -> float:
    """Return the processor time that a process has used in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Server:
    """A server process on one of the loops."""

    def __init__(self, loop: str, process: asyncio.subprocess.Process, port: int) -> None:
        self.loop = loop
        self.process = process
        self.port = port

    @classmethod
    async def start(cls, loop: str, home: str) -> Server:
        """Start a server and return it when it is ready."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.event_loop",
            "--serve",
            loop,
            "--home",
            home,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        return cls(loop, process, int(await process.stdout.readline()))

    async def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        await self.process.wait()

    def connect(self) -> connect:
        """Return an ingest connection; use it as a context manager."""
        return connect(
            f"ws://127.0.0.1:{self.port}/api/v1/ingest",
            additional_headers={"Authorization": f"Bearer {TOKEN}"},
            compression=None,
            max_size=None,
            proxy=None,
        )


async def greet(socket: ClientConnection, name: str, layouts: tuple[Layout, ...] = ()) -> None:
    """Register a writer with a run of its own."""
    hello = Hello(version=PROTOCOL_VERSION, run_id=name, writer="w", project="benchmark", layouts=layouts)
    await socket.send(encode(hello))
    await socket.recv()


async def small_frames(server: Server, round_number: int) -> None:
    """Send frames of one step each from several writers."""

    async def write(number: int) -> None:
        async with server.connect() as socket:
            await greet(socket, f"small-{round_number}-{number}")
            for step in range(FRAMES):
                record = Record(step=step, time=float(step), scalars={"loss": 1.0})
                await socket.send(encode(Batch(first_seq=step + 1, records=(record,))))
                await socket.recv()

    await asyncio.gather(*(write(number) for number in range(WRITERS)))


async def large_frames(server: Server, round_number: int) -> None:
    """Send frames of many steps with layer statistics from one writer."""
    layout = Layout(
        id=0,
        layers=tuple(f"layer{n}" for n in range(LAYERS)),
        statistics=("grad_norm", "update_norm", "weight_norm", "update_ratio"),
    )
    random = np.random.default_rng(round_number + 1)
    async with server.connect() as socket:
        await greet(socket, f"large-{round_number}", (layout,))
        for number in range(LARGE_FRAMES):
            blocks = random.lognormal(size=(FRAME_STEPS, LAYERS * COLUMNS)).astype("<f4")
            records = tuple(
                Record(step=step, time=float(step), scalars={"loss": 1.0}, layout=0, block=blocks[at].tobytes())
                for at, step in enumerate(range(number * FRAME_STEPS, (number + 1) * FRAME_STEPS))
            )
            await socket.send(encode(Batch(first_seq=number * FRAME_STEPS + 1, records=records)))
            await socket.recv()


async def connection_storm(server: Server) -> float:
    """Return the longest acknowledgement of a writer in milliseconds while many clients connect at once."""
    longest = 0.0
    async with server.connect() as socket:
        await greet(socket, "storm")
        storm = asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", server.port) for _ in range(STORM)), return_exceptions=True
        )
        step = 0
        while not storm.done() or step < 20:
            record = Record(step=step, time=float(step), scalars={"loss": 1.0})
            start = time.perf_counter()
            await socket.send(encode(Batch(first_seq=step + 1, records=(record,))))
            await socket.recv()
            longest = max(longest, time.perf_counter() - start)
            step += 1
    for opened in await storm:
        if not isinstance(opened, BaseException):
            opened[1].close()
    return 1000 * longest


async def idle_connections(server: Server) -> float:
    """Return the anonymous memory of a server in MiB while many connections are open that have each sent frames."""
    async with asyncio.TaskGroup() as group:
        opened = [group.create_task(_idle(server, number)) for number in range(IDLE)]
    sockets = [task.result() for task in opened]
    mib = anonymous_mib(server.process.pid)
    for socket in sockets:
        await socket.close()
    return mib


_OPENING = asyncio.Semaphore(50)


async def _idle(server: Server, number: int) -> ClientConnection:
    async with _OPENING:
        socket = await server.connect()
        await greet(socket, f"idle-{number}")
        for step in range(3):
            record = Record(step=step, time=float(step), scalars={"loss": 1.0})
            await socket.send(encode(Batch(first_seq=step + 1, records=(record,))))
            await socket.recv()
        return socket


async def compare(rounds: int) -> None:
    """Run all loads and print the table."""
    with tempfile.TemporaryDirectory() as home:
        servers = [await Server.start(loop, f"{home}/{loop}") for loop in LOOPS]
        print("| load | figure | asyncio | uvloop | uvloop / asyncio |\n|---|---|---|---|---|")
        try:
            loads: tuple[tuple[str, Callable[[Server, int], object]], ...] = (
                ("small frames", small_frames),
                ("large frames", large_frames),
            )
            for name, load in loads if rounds else ():
                cpu: dict[str, list[float]] = {loop: [] for loop in LOOPS}
                wall: dict[str, list[float]] = {loop: [] for loop in LOOPS}
                for number in range(-1, rounds):  # the first round is not counted
                    for server in servers if number % 2 else servers[::-1]:
                        before, start = core_seconds(server.process.pid), time.perf_counter()
                        await load(server, number)  # type: ignore[misc]
                        elapsed = time.perf_counter() - start
                        await asyncio.sleep(0.3)  # until the detectors have read the rest
                        if number >= 0:
                            cpu[server.loop].append(core_seconds(server.process.pid) - before)
                            wall[server.loop].append(elapsed)
                for figure, found in (("processor seconds", cpu), ("seconds", wall)):
                    medians = [statistics.median(found[loop]) for loop in LOOPS]
                    ratios = [b / a for a, b in zip(*(found[loop] for loop in LOOPS), strict=True) if a]
                    ratio = statistics.median(ratios)
                    print(f"| {name} | {figure} | {medians[0]:.3f} | {medians[1]:.3f} | {ratio:.2f} |", flush=True)
            delays = [await connection_storm(server) for server in servers]
            ratio = f"{delays[1] / delays[0]:.2f}"
            print(
                f"| {STORM:,} connections at once | ms | {delays[0]:.0f} | {delays[1]:.0f} | {ratio:.2f} |", flush=True
            )
            memory = [await idle_connections(server) for server in servers]
            print(
                f"| {IDLE} idle connections | MiB | {memory[0]:.1f} | {memory[1]:.1f} | {memory[1] / memory[0]:.2f} |"
            )
        finally:
            for server in servers:
                await server.stop()


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each load; 0 skips them")
    parser.add_argument("--serve", choices=LOOPS, help=argparse.SUPPRESS)
    parser.add_argument("--home", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve, arguments.home)
    else:
        allow_open_files()
        asyncio.run(compare(arguments.rounds))


if __name__ == "__main__":
    main()
