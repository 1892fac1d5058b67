"""Heatmaps: one statistic of every layer over the steps of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from server.storage.buckets import Buckets, choose_width
from server.storage.layouts import LayoutStore, layer_rows
from server.storage.reader import BucketReader, Column
from server.storage.segment_index import SegmentIndexStore
from server.storage.series import clamp

Reduce = Literal["max", "min", "last"]


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
    def __init__(self, layouts: LayoutStore, index: SegmentIndexStore, reader: BucketReader) -> None:
        self._layouts = layouts
        self._index = index
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
        """At most ``columns`` columns over step_from ≤ step ≤ step_to, by default all; layers of all ranks stacked."""
        stored = await self._layouts.of_run(run_id)
        stored = [item for item in stored if statistic in item.layout.statistics]
        rows = layer_rows(stored)
        names = [name for _, _, name in rows]
        index = await self._index.get(run_id)
        views = {rank: index.view(rank, attempt) for rank in index.ranks()}
        clamped = clamp(list(views.values()), step_from, step_to)
        if clamped is None or not rows:
            nothing = np.empty((len(names), 0), dtype=np.float32)
            return Heatmap(layers=names, step=np.empty(0, np.int64), bucket_steps=1, z=nothing, nonfinite=[])
        first, last = clamped
        width = choose_width(first, last, columns)
        numbers = np.arange(first // width, last // width + 1)
        z = np.full((len(rows), len(numbers)), np.nan, dtype=np.float32)
        count = np.zeros(z.shape, dtype=np.int32)
        row_of = {(rank, layer): number for number, (rank, layer, _) in enumerate(rows)}
        rows_of = {
            (item.writer_id, item.layout.id): np.array([row_of[item.rank, layer] for layer in item.layout.layers])
            for item in stored
        }
        column = Column(kind="statistic", name=statistic)
        for rank, view in views.items():
            scope = (run_id, rank, attempt)
            tile = await self._reader.read(scope, view, column, width=width, step_from=first, step_to=last)
            # Writers in the order in which they came: the newest has the last word.
            for group in sorted(tile):
                if group in rows_of:
                    cells = np.ix_(rows_of[group], tile[group].numbers - numbers[0])
                    z[cells] = _merge(z[cells], tile[group], reduce)
                    count[cells] += tile[group].nonfinite
        row, at = np.nonzero(count)
        return Heatmap(
            layers=names,
            step=numbers * width,
            bucket_steps=width,
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
