"""Heatmaps: one statistic of every layer over the steps of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from server.pyramid.buckets import first_step_of
from server.storage.layouts import LayoutStore, layer_rows
from server.storage.measurements.reader import BucketReader, Reading
from server.storage.measurements.wanted import Wanted

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
            row_of = {(rank, layer): number for number, (rank, layer, _) in enumerate(rows)}
            reading = await self._reader.read(
                run_id,
                Wanted(
                    statistic=statistic,
                    layers={
                        (item.writer_id, item.layout.id): np.array(
                            [row_of[item.rank, layer] for layer in item.layout.layers]
                        )
                        for item in stored
                    },
                    fields=frozenset({reduce}),
                    rows=len(rows),
                ),
                step_from=step_from,
                step_to=step_to,
                most=max(1, min(columns, MAX_CELLS // len(rows))),
                attempt=attempt,
            )
        if reading is None:
            nothing = np.empty((len(names), 0), dtype=np.float32)
            return Heatmap(layers=names, step=np.empty(0, np.int64), bucket_steps=1, z=nothing, nonfinite=[])
        return _heatmap(names, reading, reduce)


def _heatmap(names: list[str], reading: Reading, reduce: Reduce) -> Heatmap:
    z, count = reading.buckets.fields[reduce].astype(np.float32, copy=False), reading.buckets.nonfinite
    nonfinite: list[tuple[int, int, int]] = []
    if count is not None:
        z = np.where(np.isnan(z) & (count > 0), np.float32(np.inf), z)
        row, at = np.nonzero(count)
        nonfinite = list(zip(row.tolist(), at.tolist(), count[row, at].tolist(), strict=True))
    return Heatmap(
        layers=names,
        step=first_step_of(reading.buckets.numbers, reading.width),
        bucket_steps=reading.width,
        z=z,
        nonfinite=nonfinite,
    )
