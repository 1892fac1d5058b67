"""How long a query takes on a long run, next to the same query on a run of 10,000 steps, in one sitting.

    python -m benchmarks.queries [--steps N] [--database sqlite postgres] [--full]

The run has 300 layers × 4 statistics and 20 scalars at every step. Each query goes through the whole server but the
socket: authentication, storage, compression; the server's own cache is off. CPU is that of this process, all threads:
what a query takes on a machine that does nothing else. ``--full`` is a million steps, which takes some gigabytes and a
quarter of an hour for each database.
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

from benchmarks.databases import KINDS, fresh_database, kept_database, settle, size_of
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

Query = Callable[[np.random.Generator, int, LongRun], tuple[str, dict[str, str | int], dict[str, str]]]


def full_heatmap(
    noise: np.random.Generator, steps: int, run: LongRun
) -> tuple[str, dict[str, str | int], dict[str, str]]:
    return "heatmap", {"stat": _statistic(noise), "columns": 600}, MSGPACK


def zoomed_heatmap(
    noise: np.random.Generator, steps: int, run: LongRun
) -> tuple[str, dict[str, str | int], dict[str, str]]:
    length = steps // 100
    start = int(noise.integers(0, steps - length))
    return "heatmap", {"stat": _statistic(noise), "columns": 600, "from": start, "to": start + length}, MSGPACK


def raw_heatmap(
    noise: np.random.Generator, steps: int, run: LongRun
) -> tuple[str, dict[str, str | int], dict[str, str]]:
    start = int(noise.integers(0, steps - 500))
    return "heatmap", {"stat": _statistic(noise), "columns": 600, "from": start, "to": start + 499}, MSGPACK


def many_series(
    noise: np.random.Generator, steps: int, run: LongRun
) -> tuple[str, dict[str, str | int], dict[str, str]]:
    return "series", {"keys": ",".join(run.names), "points": 1000}, {}


QUERIES: dict[str, Query] = {
    "heatmap, all steps, 600 columns": full_heatmap,
    "heatmap, a random 1 %": zoomed_heatmap,
    "heatmap, 500 steps raw": raw_heatmap,
    "20 scalars × 1,000 points": many_series,
}


def _statistic(noise: np.random.Generator) -> str:
    return str(noise.choice(["grad_norm", "update_norm", "v_rms", "u_rms"]))


async def measure(database: Database, run: LongRun, steps: int) -> dict[str, dict[str, np.ndarray]]:
    """Query to run to milliseconds; the two runs take turns."""
    config = Config(admin_token=TOKEN, dashboard=False, cache_bytes=0)
    app = create_app(config, database)
    noise = np.random.default_rng(1)
    times: dict[str, dict[str, list[tuple[float, float]]]] = {name: {"short": [], "long": []} for name in QUERIES}
    transport = httpx.ASGITransport(app)
    headers = {"authorization": f"Bearer {TOKEN}", "accept-encoding": "zstd, gzip"}
    async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client:
        for attempt in range(REPEATS + 3):
            for name, make in QUERIES.items():
                for run_id, length in (("short", SHORT), ("long", steps)):
                    call, parameters, accept = make(noise, length, run)
                    began, busy = time.perf_counter(), time.process_time()
                    answer = await client.get(f"/api/v1/runs/{run_id}/{call}", params=parameters, headers=accept)
                    took = (1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - busy))
                    answer.raise_for_status()
                    if attempt >= 3:  # the first ones open connections and fill the planner's caches
                        times[name][run_id].append(took)
    return {name: {run_id: np.array(took) for run_id, took in found.items()} for name, found in times.items()}


async def benchmark(kind: str, steps: int, place: Path | None) -> None:
    run = LongRun(load("transformer"), layers=300, scalar_count=20)
    async with fresh_database(kind) if place is None else kept_database(kind, place) as database:
        await fill(database, run, kind, steps)
        size = await size_of(database)
        found = await measure(database, run, steps)
    values = (steps + SHORT) * (300 * 4 + 20)
    print(f"\n{kind}: {steps:,} steps, {size / 2**30:.2f} GiB on disk, {size / values:.2f} bytes a value, all levels")
    print(f"load of the machine: {' '.join(f'{load:.1f}' for load in os.getloadavg())} on {os.cpu_count()} cores")
    print(f"| query | p50 ms | p95 ms | CPU p50 ms | CPU p95 ms | the same, {SHORT:,} steps | ratio p50 | ratio CPU |")
    print("|---|---|---|---|---|---|---|---|")
    for name, took in found.items():
        (p50, p95), (cpu50, cpu95) = np.percentile(took["long"], [50, 95], axis=0).T
        (short50, short95), (shortcpu, _) = np.percentile(took["short"], [50, 95], axis=0).T
        print(
            f"| {name} | {p50:.1f} | {p95:.1f} | {cpu50:.1f} | {cpu95:.1f} "
            f"| {short50:.1f}, {short95:.1f}, CPU {shortcpu:.1f} | {p50 / short50:.2f} | {cpu50 / shortcpu:.2f} |"
        )


async def fill(database: Database, run: LongRun, kind: str, steps: int) -> None:
    """Write both runs where they are not there already."""
    for run_id, length in (("short", SHORT), ("long", steps)):
        there = await run.written(database, run_id)
        if there == length:
            continue
        if there is not None:
            raise SystemExit(
                f"the kept database has a run of {there:,} steps instead of {length:,}; name another place"
            )
        print(f"{kind}: writing {length:,} steps", file=sys.stderr, flush=True)
        began = time.monotonic()
        await run.write(database, run_id, length)
        rate = length * (300 * 4 + 20) / (time.monotonic() - began) / 1e6
        print(f"{kind}: compacted at {rate:.1f} million values a second", file=sys.stderr, flush=True)
    await settle(database)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=DEFAULT)
    parser.add_argument("--full", action="store_true", help=f"{FULL:,} steps")
    parser.add_argument("--database", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the databases here, or use those that are here")
    options = parser.parse_args()
    for kind in options.database:
        place = None if options.keep is None else options.keep / kind
        asyncio.run(benchmark(kind, FULL if options.full else options.steps, place))


if __name__ == "__main__":
    main()
