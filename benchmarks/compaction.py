"""Memory of a process that compacts all segments of a run into tiles.

    python -m benchmarks.compaction

Each row is a run in a new SQLite file, which one process fills and another compacts. The resident memory of the second
process is measured before it begins and at its peak.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
from sqlalchemy import func, select

from client_sdk.precision import compact
from client_sdk.protocol import Hello, Layout, Record
from server.models import RunState
from server.pipeline.packing import pack
from server.schema import monitors, segments, spans
from server.storage import migrate
from server.storage.database import Database
from server.storage.measurements.commits import CommitRequest, CommitStore
from server.storage.measurements.compaction import Compactor
from server.storage.measurements.spans import SpanStore
from server.storage.runs import RunStore

RUNS = ((2_560, 300), (10_240, 300), (25_600, 300), (512, 5_000), (2_048, 5_000))
"""Number of records and layers of each run."""
STATISTICS = ("grad_norm", "update_norm", "v_rms", "u_rms")
MIB = 2**20


async def fill(database: Database, records: int, layers: int) -> None:
    """Store segments like those of a training, of at most some MiB each."""
    await migrate.upgrade(database)
    layout = Layout(id=0, layers=tuple(f"layer{at}" for at in range(layers)), statistics=STATISTICS)
    hello = Hello(version=1, run_id="run", writer="writer", project="benchmark", layouts=(layout,))
    runs, commits = RunStore(database), CommitStore(database)
    writer = await runs.register(hello, 0.0)
    together = max(1, 60_000 // layers)
    noise = np.random.default_rng(0)
    level = noise.lognormal(size=(layers, len(STATISTICS)))
    for start in range(0, records, together):
        batch = []
        for step in range(start, min(start + together, records)):
            level *= np.exp(0.01 * noise.standard_normal(level.shape))
            block = compact(level.astype(np.float32)).astype("<f4").tobytes()
            batch.append(Record(step=step, time=float(step), scalars={"loss": float(step)}, layout=0, block=block))
        drafts = pack(start + 1, batch, writer.layouts, {0: len(STATISTICS)})
        await commits.commit(
            [CommitRequest(writer=writer, expected_seq=start, drafts=drafts, now=0.0, known_names=frozenset())]
        )
    await runs.finish_writer("run", writer.writer_id, RunState.FINISHED, 0.0)
    async with database.write() as connection:
        # The state that detectors leave when they have read everything.
        last = (await connection.execute(select(func.max(segments.c.id)))).scalar_one()
        await connection.execute(
            monitors.insert().values(run_id="run", rank=0, position=last, state=b"", saved_at=0.0, revision=0)
        )


async def compact_all(database: Database) -> tuple[float, float, int]:
    """Compact everything and return the MiB before, the MiB at the peak, and the number of spans of level 0."""
    worker = Compactor(SpanStore(database), 1.0)
    before = psutil.Process().memory_info().rss / MIB
    while await worker.run_once():
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    async with database.read() as connection:
        count = (
            await connection.execute(select(func.count()).select_from(spans).where(spans.c.level == 0))
        ).scalar_one()
    return before, peak, int(count)


async def work(url: str, records: int, layers: int, *, is_filling: bool) -> None:
    """Fill the database at ``url``, or compact it and print its row of the table."""
    database = Database(url)
    try:
        if is_filling:
            await fill(database, records, layers)
        else:
            before, peak, count = await compact_all(database)
            values = records * layers * len(STATISTICS) * 4 / MIB
            cells = (f"{records:,} records × {layers:,} layers × {len(STATISTICS)}", f"{values:.0f}", str(count))
            print(f"| {' | '.join(cells)} | {before:.0f} | {peak:.0f} |", flush=True)
    finally:
        await database.close()


def main() -> None:
    """Print the table, with two processes for each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs=4, metavar=("WHAT", "URL", "RECORDS", "LAYERS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        what, url, records, layers = given.work
        asyncio.run(work(url, int(records), int(layers), is_filling=what == "fill"))
        return
    print("| SQLite | values, MiB | spans of level 0 | before, MiB | peak, MiB |\n|---|---|---|---|---|", flush=True)
    for records, layers in RUNS:
        with tempfile.TemporaryDirectory(prefix="spikewatch-bench-") as directory:
            url = f"sqlite:///{Path(directory) / 'bench.sqlite3'}"
            for what in ("fill", "compact"):
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.compaction",
                    "--work",
                    what,
                    url,
                    str(records),
                    str(layers),
                ]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
