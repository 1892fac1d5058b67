"""From the columns of a segment back to samples, one for each record, as the detectors read them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from server.detectors.layer_sums import STATISTICS, layer_sums
from server.models import LayerSums, Layout, Sample
from server.storage.columns import BlockColumns, Columns


def samples(columns: Columns, attempt: int, layouts: Mapping[int, Layout]) -> Iterator[Sample]:
    """With the sums of their layers in place of their blocks. ``layouts``: those of the segment's writer, by their
    number. ``columns``: with the statistics that the detectors read, at least."""
    scalars: list[dict[str, float]] = [{} for _ in columns.steps]
    for name, column in columns.scalars.items():
        rows = range(len(scalars)) if column.present.all() else np.flatnonzero(column.present).tolist()
        for row, value in zip(rows, column.values.tolist(), strict=True):
            scalars[row][name] = value
    measured: dict[int, tuple[Layout, LayerSums]] = {}
    for block in columns.blocks:
        layout = layouts[block.layout]
        for row, sums in zip(block.rows.tolist(), _sums(block, layout), strict=True):
            measured[row] = (layout, sums)
    for row, (step, time) in enumerate(zip(columns.steps.tolist(), columns.times.tolist(), strict=True)):
        layout_of, sums_of = measured.get(row, (None, None))
        yield Sample(step=step, time=time, scalars=scalars[row], attempt=attempt, layout=layout_of, layer_sums=sums_of)


def _sums(block: BlockColumns, layout: Layout) -> list[LayerSums]:
    """Of each record of a block. A statistic that the layout has and the segment has not was measured nowhere."""
    steps = len(block.rows)
    absent = np.full((steps, block.layers), np.nan, dtype=np.float32)
    found = {
        name: np.ascontiguousarray(block.statistics[name].T) if name in block.statistics else absent
        for name in STATISTICS
        if name in layout.statistics
    }
    return layer_sums(layout, found) if found else [LayerSums()] * steps
