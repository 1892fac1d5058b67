"""Turns the columns of a segment into samples, one per record, which the detectors read. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from server.detectors.layer_sums import STATISTICS, layer_sums
from server.models import LayerColumns, LayerSums, Layout, Sample
from server.pyramid.columns import BlockColumns, Columns


def samples(
    columns: Columns, attempt: int, layouts: Mapping[int, Layout], *, is_late: bool = False, summed: bool = False
) -> Iterator[Sample]:
    """Yield the samples of a segment in order.

    ``layouts`` are those of the segment's writer, keyed by layout number. ``is_late`` tells whether the records belong
    to earlier steps of the attempt. With ``summed``, each sample carries the sums over layers that the detectors use,
    which are computed for all records at once.
    """
    scalars: list[dict[str, float]] = [{} for _ in columns.steps]
    for name, column in columns.scalars.items():
        values = column.values.tolist()
        if len(values) == len(scalars):
            for of_row, value in zip(scalars, values, strict=True):
                of_row[name] = value
        else:
            for row, value in zip(np.flatnonzero(column.present).tolist(), values, strict=True):
                scalars[row][name] = value
    layers: dict[int, dict[str, Any]] = {}
    for block in columns.blocks:
        layout = layouts[block.layout]
        sums = _sums(block, layout) if summed else [None] * len(block.rows)
        for at, (row, own) in enumerate(zip(block.rows.tolist(), sums, strict=True)):
            columns_of_row = LayerColumns(statistics=block.statistics, at=at)
            layers[row] = {"layout": layout, "columns": columns_of_row, "layer_sums": own}
    for row, (step, time) in enumerate(zip(columns.steps.tolist(), columns.times.tolist(), strict=True)):
        yield Sample(
            step=step, time=time, scalars=scalars[row], attempt=attempt, is_late=is_late, **layers.get(row, {})
        )


def _sums(block: BlockColumns, layout: Layout) -> list[LayerSums]:
    """Return the layer sums of each record of a block.

    A statistic that the layout declares and the segment lacks was not measured on any layer.
    """
    steps = len(block.rows)
    declared = [name for name in STATISTICS if name in layout.statistics]
    found = {name: np.ascontiguousarray(block.statistics[name].T) for name in declared if name in block.statistics}
    if len(found) < len(declared):
        absent = np.full((steps, block.layers), np.nan, dtype=np.float32)
        found |= {name: absent for name in declared if name not in found}
    return layer_sums(layout, found) if found else [LayerSums()] * steps
