"""From the columns of a segment back to samples, one for each record, as the detectors read them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from server.models import Layout, Sample
from server.storage.columns import BlockColumns, Columns


def samples(columns: Columns, attempt: int, layouts: Mapping[int, Layout]) -> Iterator[Sample]:
    """``layouts``: those of the segment's writer, by their number."""
    scalars: list[dict[str, float]] = [{} for _ in columns.steps]
    for name, column in columns.scalars.items():
        for row, value in zip(np.flatnonzero(column.present).tolist(), column.values.tolist(), strict=True):
            scalars[row][name] = value
    blocks: dict[int, tuple[BlockColumns, int]] = {}
    for block in columns.blocks:
        for at, row in enumerate(block.rows.tolist()):
            blocks[row] = (block, at)
    for row, (step, time) in enumerate(zip(columns.steps.tolist(), columns.times.tolist(), strict=True)):
        layout, matrix = None, None
        if row in blocks:
            block, at = blocks[row]
            layout = layouts[block.layout]
            matrix = np.full((block.layers, len(layout.statistics)), np.nan, dtype=np.float32)
            for number, name in enumerate(layout.statistics):
                if name in block.statistics:
                    matrix[:, number] = block.statistics[name][:, at]
        yield Sample(step=step, time=time, scalars=scalars[row], attempt=attempt, layout=layout, block=matrix)
