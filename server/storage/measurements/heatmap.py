"""Query for heatmaps: one statistic of every layer over the steps of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from server.pyramid.buckets import first_step_of
from server.pyramid.row_selection import RowSelection
from server.storage.layouts import LayoutStore, layer_rows
from server.storage.measurements.reader import BucketReader, BucketResult

Reduce = Literal["max", "min", "last"]
"""Value of a bucket that a cell shows."""

MAX_CELLS = 8_000_000
"""Maximum number of cells in a heatmap."""


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """Layers × columns; the columns are consecutive buckets, empty ones included."""

    layers: list[str]
    step: NDArray[np.int64]
    """First step of each bucket, shape (columns,)."""
    bucket_steps: int
    """Steps in each bucket."""
    z: NDArray[np.float32]
    """Cells, shape (layers, columns); NaN where nothing was measured, infinite where no measured value was finite."""
    nonfinite: list[tuple[int, int, int]]
    """Cells with measured values that are not finite: (row, column, number of such values)."""


class HeatmapQuery:
    """Reads heatmaps of layer statistics."""

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
        """Return at most ``columns`` columns from ``step_from`` to ``step_to``, with the layers of all ranks stacked.

        Both steps are included; None means no bound. A run with very many layers gets fewer columns, so that the
        heatmap has at most `MAX_CELLS` cells. Raises `CorruptDataError` and `DatabaseError`.
        """
        stored = await self._layouts.of_run(run_id)
        stored = [item for item in stored if statistic in item.layout.statistics]
        rows = layer_rows(stored)
        names = [name for _, _, name in rows]
        result = None
        if rows:
            row_of = {(rank, layer): number for number, (rank, layer, _) in enumerate(rows)}
            result = await self._reader.read(
                run_id,
                RowSelection(
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
                max_buckets=max(1, min(columns, MAX_CELLS // len(rows))),
                attempt=attempt,
            )
        if result is None:
            nothing = np.empty((len(names), 0), dtype=np.float32)
            return Heatmap(layers=names, step=np.empty(0, np.int64), bucket_steps=1, z=nothing, nonfinite=[])
        return _heatmap(names, result, reduce)


def _heatmap(names: list[str], result: BucketResult, reduce: Reduce) -> Heatmap:
    z, count = result.buckets.fields[reduce].astype(np.float32, copy=False), result.buckets.nonfinite
    nonfinite: list[tuple[int, int, int]] = []
    if count is not None:
        z = np.where(np.isnan(z) & (count > 0), np.float32(np.inf), z)
        row, at = np.nonzero(count)
        nonfinite = list(zip(row.tolist(), at.tolist(), count[row, at].tolist(), strict=True))
    return Heatmap(
        layers=names,
        step=first_step_of(result.buckets.numbers, result.width),
        bucket_steps=result.width,
        z=z,
        nonfinite=nonfinite,
    )
