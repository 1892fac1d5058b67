"""A long run made of recorded series, repeated and slowly modulated, which the compaction's code writes into tiles.

The 300 layers × 4 statistics are the 30 layers of a recorded transformer, each ten times with another start and its own
slow modulation, rounded to 2⁻¹² as by the SDK; the scalars are the recorded loss in 20 such versions.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select, update

from benchmarks.recordings import Recording
from client_sdk.precision import compact
from client_sdk.protocol import Hello, Layout
from server.pyramid.columns import BlockColumns, Columns, ScalarColumn
from server.pyramid.tiles import CAPACITY, FAN_IN, span_of_records
from server.schema import attempts, scalars, spans, writers
from server.storage.database import Database
from server.storage.measurements.compaction import Compactor
from server.storage.measurements.spans import AttemptSegments, SpanStore
from server.storage.runs import RunStore

STATISTICS = ("grad_norm", "update_norm", "v_rms", "u_rms")


class LongRun:
    """A run of any length, whose parts are generated on demand."""

    def __init__(
        self, recording: Recording, *, layers: int, scalar_count: int, names: tuple[str, ...] | None = None
    ) -> None:
        """Derive ``layers`` layers and ``scalar_count`` scalars from ``recording``.

        ``names``: names of the scalars; None calls them metric00, metric01, and so on.
        """
        self.layers = tuple(f"layer{number:03}" for number in range(layers))
        """Names of the layers."""
        self.names = names or tuple(f"metric{number:02}" for number in range(scalar_count))
        """Names of the scalars."""
        rows = np.arange(layers) % len(recording.layers)
        self._base = {name: recording.cube[recording.statistics.index(name)][rows] for name in STATISTICS}
        self._loss = recording.scalars["loss"]
        noise = np.random.default_rng(0)
        self._starts = noise.integers(0, recording.cube.shape[2], layers)
        self._periods = noise.uniform(2e3, 2e5, layers)
        self.spikes: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        """Steps at which the first scalar and the first layer's `grad_norm` are a million for a single step."""

    def columns(self, start: int, stop: int) -> Columns:
        """Return the steps start ≤ step < stop."""
        steps = np.arange(start, stop, dtype=np.int64)
        n = self._base[STATISTICS[0]].shape[1]
        at = (steps[None, :] + self._starts[:, None]) % n  # layers × steps
        bend = 1.0 + 0.3 * np.sin(2 * np.pi * steps[None, :] / self._periods[:, None]).astype(np.float32)
        statistics = {
            name: compact(np.take_along_axis(base, at, axis=1) * bend.astype(np.float32))
            for name, base in self._base.items()
        }
        inside = self.spikes[(self.spikes >= start) & (self.spikes < stop)] - start
        statistics["grad_norm"][0, inside] = 1e6
        every = np.ones(len(steps), dtype=np.bool_)
        found = {}
        for number, name in enumerate(self.names):
            values = self._loss[(steps + 97 * number) % len(self._loss)] * (1.0 + 0.1 * np.cos(steps / (1e4 + number)))
            if number == 0:
                values[inside] = 1e6
            found[name] = ScalarColumn(present=every, values=values)
        block = BlockColumns(
            layout=0,
            layers=len(self.layers),
            rows=np.arange(len(steps), dtype=np.int32),
            statistics=statistics,
        )
        return Columns(steps=steps, times=(1.7e9 + steps * 0.1).astype(np.float64), scalars=found, blocks=(block,))

    async def written(self, database: Database, run_id: str) -> int | None:
        """Return the number of steps of the run that are stored, or None if there are none."""
        query = select(func.max(spans.c.last_step)).where(spans.c.run_id == run_id, spans.c.level == 0)
        async with database.read() as connection:
            last: int | None = (await connection.execute(query)).scalar_one()
        return None if last is None else last + 1

    async def write(self, database: Database, run_id: str, steps: int) -> None:
        """Write the first ``steps`` steps into tiles of all levels. Raises `RuntimeError` if the run exists."""
        layout = Layout(id=0, layers=self.layers, statistics=STATISTICS)
        hello = Hello(version=1, run_id=run_id, writer=run_id, project="benchmark", layouts=(layout,))
        writer = await RunStore(database).register(hello, 0.0)
        async with database.write() as connection:
            await connection.execute(
                attempts.insert().values(
                    run_id=run_id, rank=0, attempt=0, first_step=0, last_step=steps - 1, started_at=0.0
                )
            )
            await connection.execute(
                scalars.insert(), [{"run_id": run_id, "rank": 0, "name": name} for name in self.names]
            )
            await connection.execute(
                update(writers).where(writers.c.id == writer.writer_id).values(last_seq=steps, state="finished")
            )
        group = AttemptSegments(
            run_id=run_id,
            writer_id=writer.writer_id,
            rank=0,
            attempt=0,
            records=0,
            layers=len(self.layers),
            is_closed=True,
            position=None,
        )
        store = SpanStore(database)
        compactor = Compactor(store, 1.0)
        began = time.monotonic()
        for number, start in enumerate(range(0, steps, CAPACITY)):
            draft = span_of_records(self.columns(start, min(start + CAPACITY, steps)), start + 1)
            if not await store.replace_segments(group, [], [draft]):
                raise RuntimeError(f"the run {run_id} exists already: use an empty database")
            if (number + 1) % FAN_IN == 0:
                await compactor.build_levels(run_id)
            if (number + 1) % 500 == 0:
                rate = (start + CAPACITY) / (time.monotonic() - began)
                print(f"  {start + CAPACITY:,} steps, {rate:,.0f} a second", file=sys.stderr, flush=True)
        await compactor.build_levels(run_id)
        await compactor.close(run_id, writer.writer_id, 0)
