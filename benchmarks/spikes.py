"""Visibility of single-step spikes: 2,000 at random steps of a long run, looked for at 50 random zooms.

    python -m benchmarks.spikes [--steps N] [--full] [--database sqlite postgres]

A spike counts as shown if its value is the maximum of the bucket that holds its step, in the series of the scalar and
in the heatmap of the layer. ``--full`` is a million steps.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import numpy as np

from benchmarks.databases import KINDS, fresh_database
from benchmarks.long_run import LongRun
from benchmarks.recordings import load
from server.storage.layouts import LayoutStore
from server.storage.measurements.heatmap import HeatmapQuery
from server.storage.measurements.reader import BucketReader
from server.storage.measurements.series import SeriesQuery
from server.storage.runs import RunStore

DEFAULT = 100_000
FULL = 1_000_000
SPIKES = 2_000
ZOOMS = 50
HEIGHT = 1e6


async def benchmark(kind: str, steps: int) -> tuple[int, int]:
    """Return the number of spikes in the queried ranges, and the number of those that were not shown."""
    noise = np.random.default_rng(3)
    run = LongRun(load("transformer"), layers=3, scalar_count=1)
    run.spikes = np.sort(noise.choice(steps, SPIKES, replace=False))
    looked_for = lost = 0
    async with fresh_database(kind) as database:
        await run.write(database, "run", steps)
        reader = BucketReader(database, 2**26)
        series, heatmap = SeriesQuery(RunStore(database), reader), HeatmapQuery(LayoutStore(database), reader)
        for zoom in range(ZOOMS):
            length = int(np.exp(noise.uniform(np.log(100), np.log(steps)))) if zoom else steps
            first = int(noise.integers(0, steps - length + 1))
            window: dict[str, Any] = {"step_from": first, "step_to": first + length - 1}
            inside = run.spikes[(run.spikes >= first) & (run.spikes < first + length)]
            looked_for += 2 * len(inside)
            found = await series.read("run", [run.names[0]], points=1_000, **window)
            buckets = found.series[run.names[0]]
            shown = buckets.max[0][np.searchsorted(buckets.numbers, inside // found.bucket_steps)]
            lost += int(np.count_nonzero(shown != HEIGHT))
            drawn = await heatmap.read("run", "grad_norm", columns=600, reduce="max", **window)
            cells = drawn.z[0][(inside - drawn.step[0]) // drawn.bucket_steps]
            lost += int(np.count_nonzero(cells != HEIGHT))
    return looked_for, lost


def main() -> None:
    """Print the table for the databases that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=DEFAULT)
    parser.add_argument("--full", action="store_true", help=f"{FULL:,} steps")
    parser.add_argument("--database", nargs="+", choices=KINDS, default=["sqlite"])
    options = parser.parse_args()
    steps = FULL if options.full else options.steps
    print(f"{SPIKES:,} single-step spikes in {steps:,} steps, {ZOOMS} random zooms\n")
    print("| | looked for | not shown |")
    print("|---|---|---|")
    for kind in options.database:
        looked_for, lost = asyncio.run(benchmark(kind, steps))
        print(f"| Spikewatch, {kind} | {looked_for:,} | {lost:,} |")


if __name__ == "__main__":
    main()
