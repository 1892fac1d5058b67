"""Time of queries on a long run, compared with the same queries on a run of 10,000 steps.

    python -m benchmarks.queries [--steps N] [--database sqlite postgres] [--full] [--keep DIR] [--cold]

The run has 300 layers × 4 statistics and 20 scalars at every step. Each query passes through the whole server except
the socket: authentication, storage and compression; the server's own cache is off. The two runs alternate, so that
other load of the machine affects both. CPU is the time of all threads of this process, including the client that
unpacks the answer.

A zoom of 1 % is 10,000 steps of a run of a million and 100 steps of a short one, so it is also compared with a zoom of
as many steps, as far as the short run has them.

``--full`` is a million steps, which takes some gigabytes and a quarter of an hour for each database. ``--keep`` stores
them in a directory for the next time; ``--cold`` first removes these files from the system's page cache (Linux).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

from benchmarks.databases import (
    KINDS,
    drop_from_page_cache,
    fresh_database,
    kept_database,
    settle,
    size_of,
    sizes_of_levels,
)
from benchmarks.long_run import LongRun
from benchmarks.recordings import load
from server.config import Config
from server.main import create_app
from server.storage.database import Database

TOKEN = "benchmark-token-benchmark"
SHORT = 10_000  # steps
DEFAULT = 50_000
FULL = 1_000_000
REPEATS = 60
MSGPACK = {"accept": "application/msgpack"}

Request = tuple[str, dict[str, str | int], dict[str, str]]
"""Last part of the path, parameters and headers of a request."""
Query = Callable[[np.random.Generator, int, LongRun], Request]
"""Function that returns a random request for a run of the given number of steps."""


def full_heatmap(noise: np.random.Generator, steps: int, run: LongRun) -> Request:
    """Request a heatmap of all steps."""
    return "heatmap", {"stat": _statistic(noise), "columns": 600}, MSGPACK


def zoomed_heatmap(noise: np.random.Generator, steps: int, run: LongRun) -> Request:
    """Request a heatmap of a random 1 % of the steps."""
    length = steps // 100
    start = int(noise.integers(0, steps - length))
    return "heatmap", {"stat": _statistic(noise), "columns": 600, "from": start, "to": start + length}, MSGPACK


def raw_heatmap(noise: np.random.Generator, steps: int, run: LongRun) -> Request:
    """Request a heatmap of 500 single steps."""
    start = int(noise.integers(0, steps - 500))
    return "heatmap", {"stat": _statistic(noise), "columns": 600, "from": start, "to": start + 499}, MSGPACK


def many_series(noise: np.random.Generator, steps: int, run: LongRun) -> Request:
    """Request all scalars over all steps."""
    return "series", {"keys": ",".join(run.names), "points": 1000}, {}


QUERIES: dict[str, tuple[Query, Query]] = {
    "heatmap, all steps, 600 columns": (full_heatmap, full_heatmap),
    "heatmap, a random 1 %": (zoomed_heatmap, zoomed_heatmap),
    "heatmap, a random 1 % against as many steps": (zoomed_heatmap, full_heatmap),
    "heatmap, 500 steps raw": (raw_heatmap, raw_heatmap),
    "20 scalars × 1,000 points": (many_series, many_series),
}
"""Queries of the long run and of the short one, by their name in the table."""


def _statistic(noise: np.random.Generator) -> str:
    return str(noise.choice(["grad_norm", "update_norm", "v_rms", "u_rms"]))


async def measure(database: Database, run: LongRun, steps: int) -> dict[str, dict[str, np.ndarray]]:
    """Return for each query and run an array [repeats, 3] of milliseconds, CPU milliseconds, and kB of the answer."""
    config = Config(admin_token=TOKEN, dashboard=False, cache_bytes=0)
    app = create_app(config, database)
    noise = np.random.default_rng(1)
    times: dict[str, dict[str, list[tuple[float, float, float]]]] = {
        name: {"short": [], "long": []} for name in QUERIES
    }
    transport = httpx.ASGITransport(app)
    headers = {"authorization": f"Bearer {TOKEN}", "accept-encoding": "zstd, gzip"}
    async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client:
        for repeat in range(REPEATS + 3):
            for name, (of_long, of_short) in QUERIES.items():
                for run_id, length, make in (("short", SHORT, of_short), ("long", steps, of_long)):
                    call, parameters, accept = make(noise, length, run)
                    began, busy = time.perf_counter(), time.process_time()
                    answer = await client.get(f"/api/v1/runs/{run_id}/{call}", params=parameters, headers=accept)
                    took = (
                        1e3 * (time.perf_counter() - began),
                        1e3 * (time.process_time() - busy),
                        len(answer.content) / 1e3,
                    )
                    answer.raise_for_status()
                    if repeat >= 3:  # the first ones open connections and fill the planner's caches
                        times[name][run_id].append(took)
    return {name: {run_id: np.array(took) for run_id, took in found.items()} for name, found in times.items()}


async def benchmark(kind: str, steps: int, directory: Path | None) -> None:
    """Measure all queries on one kind of database and print the table."""
    run = LongRun(load("transformer"), layers=300, scalar_count=20)
    async with fresh_database(kind) if directory is None else kept_database(kind, directory) as database:
        await fill(database, run, kind, steps)
        size = await size_of(database)
        levels = await sizes_of_levels(database)
        found = await measure(database, run, steps)
    values = (steps + SHORT) * (300 * 4 + 20)
    print(f"\n{kind}: {steps:,} steps, {size / 2**30:.2f} GiB on disk, {size / values:.2f} bytes a value, all levels")
    for is_scalar, what in ((False, "layer statistics"), (True, "scalars")):
        first, *above = [size for _, scalar, size in levels if scalar is is_scalar]
        shares = ", ".join(f"{size / first:.1%}" for size in above)
        print(f"{what}: the levels above add {sum(above) / first:.1%} to level 0 ({shares})")
    print(f"load of the machine: {' '.join(f'{load:.1f}' for load in os.getloadavg())} on {os.cpu_count()} cores")
    print(f"| query | p50 ms | p95 ms | CPU ms | kB | {SHORT:,} steps: p50 | p95 | CPU | kB | ratio p50 | p95 | CPU |")
    print(f"|{'---|' * 12}")
    for name, took in found.items():
        p50, cpu, size = np.percentile(took["long"], 50, axis=0)
        short50, short_cpu, short_size = np.percentile(took["short"], 50, axis=0)
        p95, short95 = (np.percentile(took[run_id][:, 0], 95) for run_id in ("long", "short"))
        print(
            f"| {name} | {p50:.0f} | {p95:.0f} | {cpu:.1f} | {size:.0f} "
            f"| {short50:.0f} | {short95:.0f} | {short_cpu:.1f} | {short_size:.0f} "
            f"| {p50 / short50:.2f} | {p95 / short95:.2f} | {cpu / short_cpu:.2f} |"
        )


async def fill(database: Database, run: LongRun, kind: str, steps: int) -> None:
    """Write both runs unless they are stored already."""
    for run_id, length in (("short", SHORT), ("long", steps)):
        stored = await run.written(database, run_id)
        if stored == length:
            continue
        if stored is not None:
            raise SystemExit(
                f"the kept database has a run of {stored:,} steps instead of {length:,}: use another --keep directory"
            )
        print(f"{kind}: writing {length:,} steps", file=sys.stderr, flush=True)
        began = time.monotonic()
        await run.write(database, run_id, length)
        rate = length * (300 * 4 + 20) / (time.monotonic() - began) / 1e6
        print(f"{kind}: compacted at {rate:.1f} million values a second", file=sys.stderr, flush=True)
    await settle(database)


def main() -> None:
    """Measure the databases that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=DEFAULT)
    parser.add_argument("--full", action="store_true", help=f"{FULL:,} steps")
    parser.add_argument("--database", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--keep", type=Path, metavar="DIR", help="directory in which the databases are kept and reused")
    parser.add_argument("--cold", action="store_true", help="remove the files of --keep from the page cache first")
    options = parser.parse_args()
    for kind in options.database:
        directory = None if options.keep is None else options.keep / kind
        if directory is not None and options.cold:
            drop_from_page_cache(directory)
        asyncio.run(benchmark(kind, FULL if options.full else options.steps, directory))


if __name__ == "__main__":
    main()
