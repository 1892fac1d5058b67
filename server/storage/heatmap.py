"""Heatmaps: one statistic of every layer over the steps of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from server.storage.buckets import Buckets, first_step_of
from server.storage.layouts import LayoutStore, StoredLayout, layer_rows
from server.storage.reader import BucketReader, Reading
from server.storage.wanted import Wanted

Reduce = Literal["max", "min", "last"]

MAX_CELLS = 8_000_000


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """Layers × columns; the columns are consecutive buckets, empty ones included."""

    layers: list[str]
    step: NDArray[np.int64]
    """(columns,): first step of each bucket."""
    bucket_steps: int
    z: NDArray[np.float32]
    """(layers, columns); NaN where nothing was measured, infinite where nothing measured was finite."""
    nonfinite: list[tuple[int, int, int]]
    """(row, column, count) of every cell that holds measured values which are not finite."""


class HeatmapQuery:
    def __init__(self, layouts: LayoutStore, reader: BucketReader) -> None:
        self._layouts = layouts
        self._reader = reader

    async def read(
        self,
        run_id: str,
        statistic: str,
        *,
        step_from: int | None,
        step_to: int | None,
        columns: int,
        reduce: Reduce,
        attempt: int | None = None,
    ) -> Heatmap:
        """At most ``columns`` columns over step_from ≤ step ≤ step_to, by default all; layers of all ranks stacked.

        Fewer where there are so many layers that they would make more than `MAX_CELLS`. Raises `CorruptDataError` and
        `DatabaseError`.
        """
        stored = await self._layouts.of_run(run_id)
        stored = [item for item in stored if statistic in item.layout.statistics]
        rows = layer_rows(stored)
        names = [name for _, _, name in rows]
        reading = None
        if rows:
            reading = await self._reader.read(
                run_id,
                Wanted(
                    statistic=statistic,
                    layouts=frozenset(item.layout.id for item in stored),
                    fields=frozenset({reduce}),
                ),
                step_from=step_from,
                step_to=step_to,
                most=max(1, min(columns, MAX_CELLS // len(rows))),
                attempt=attempt,
            )
        if reading is None:
            nothing = np.empty((len(names), 0), dtype=np.float32)
            return Heatmap(layers=names, step=np.empty(0, np.int64), bucket_steps=1, z=nothing, nonfinite=[])
        return await asyncio.to_thread(_draw, reading, stored, rows, reduce)


def _draw(
    reading: Reading, stored: Sequence[StoredLayout], rows: Sequence[tuple[int, str, str]], reduce: Reduce
) -> Heatmap:
    """In a thread."""
    numbers = np.arange(reading.window[0] // reading.width, reading.window[1] // reading.width + 1, dtype=np.int64)
    z = np.full((len(rows), len(numbers)), np.nan, dtype=np.float32)
    count = np.zeros(z.shape, dtype=np.int32)
    row_of = {(rank, layer): number for number, (rank, layer, _) in enumerate(rows)}
    rows_of = {
        (item.writer_id, item.layout.id): np.array([row_of[item.rank, layer] for layer in item.layout.layers])
        for item in stored
    }
    # Writers in the order in which they came: the newest has the last word.
    for group in sorted(reading.groups, key=lambda group: (group.writer_id, group.layout)):
        place = rows_of.get((group.writer_id, group.layout))
        if place is not None:
            buckets = reading.groups[group]
            cells = np.ix_(place, buckets.numbers - numbers[0])
            z[cells] = _merge(z[cells], buckets, reduce)
            count[cells] += buckets.nonfinite
    row, at = np.nonzero(count)
    return Heatmap(
        layers=[name for _, _, name in rows],
        step=first_step_of(numbers, reading.width),
        bucket_steps=reading.width,
        z=z,
        nonfinite=list(zip(row.tolist(), at.tolist(), count[row, at].tolist(), strict=True)),
    )


def _merge(before: NDArray[np.float32], buckets: Buckets, reduce: Reduce) -> NDArray[np.float32]:
    """The cells of one layout with these buckets put in; where another layout has filled them, ``reduce`` decides."""
    values = {"max": buckets.max, "min": buckets.min, "last": buckets.last}[reduce].astype(np.float32)
    values = np.where(np.isnan(values) & (buckets.nonfinite > 0), np.float32(np.inf), values)
    if reduce == "last":
        return np.where(np.isnan(values), before, values)
    merged: NDArray[np.float32] = (np.fmax if reduce == "max" else np.fmin)(before, values)
    return merged
