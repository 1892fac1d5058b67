"""Query for the histogram of one layer nearest to a step."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import and_, or_, select

from client_sdk.protocol import HISTOGRAM_BINS
from server.errors import HistogramCorruptError
from server.pyramid import histograms as codec
from server.pyramid.histograms import LayerHistograms
from server.schema import histograms, layouts, writers
from server.storage.database import Database


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Histogram of one layer at one step."""

    layer: str
    step: int
    attempt: int
    edges: NDArray[np.float64]
    """Edges of the bins, shape (65,)."""
    counts: NDArray[np.uint32]
    """Counts of the bins, shape (64,)."""
    dip: float | None
    """Hartigan's dip, or None where it was not computed."""


def decode_histograms(row_id: int, payload: bytes) -> LayerHistograms:
    """Decode the payload of the row ``row_id``. Raises `HistogramCorruptError` if it is damaged."""
    try:
        return codec.decode(payload)
    except ValueError as error:
        raise HistogramCorruptError(row_id, str(error)) from error


class HistogramQuery:
    """Reads single histograms."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def nearest(self, run_id: str, rank: int, layer: str, which: str, step: int | None) -> Histogram | None:
        """Return the histogram of a layer nearest to ``step``, or the last one where ``step`` is None.

        Where several attempts have one at the same step, the latest attempt's is returned. None means that there is no
        histogram of this layer, or that the training process had none for it. Raises `HistogramCorruptError` and
        `DatabaseError`.
        """
        async with self._database.read() as connection:
            holders = await connection.execute(
                select(layouts.c.writer_id, layouts.c.number, layouts.c.layers)
                .join(writers, writers.c.id == layouts.c.writer_id)
                .where(writers.c.run_id == run_id, writers.c.rank == rank)
            )
            rows_of = {(row.writer_id, row.number): row.layers.index(layer) for row in holders if layer in row.layers}
            if not rows_of:
                return None
            # One condition for each (writer, layout) that has the layer: as many as the run had restarts.
            has_layer = or_(
                *(and_(histograms.c.writer_id == writer, histograms.c.layout == number) for writer, number in rows_of)
            )
            base = select(histograms).where(histograms.c.run_id == run_id, histograms.c.which == which, has_layer)
            at = histograms.c.step
            if step is None:
                query = base.order_by(at.desc(), histograms.c.id.desc()).limit(1)
                found = (await connection.execute(query)).all()
            else:
                below = base.where(at <= step).order_by(at.desc(), histograms.c.id.desc()).limit(1)
                above = base.where(at > step).order_by(at, histograms.c.id.desc()).limit(1)
                found = [*(await connection.execute(below)).all(), *(await connection.execute(above)).all()]
        if not found:
            return None
        row = found[0] if step is None else min(found, key=lambda item: abs(item.step - step))
        layer_row = rows_of[row.writer_id, row.layout]
        return await asyncio.to_thread(_decode, row.id, row.payload, layer_row, layer, (row.step, row.attempt))


def _decode(row_id: int, payload: bytes, layer_row: int, layer: str, at: tuple[int, int]) -> Histogram | None:
    decoded = decode_histograms(row_id, payload)
    if not decoded.measured[layer_row]:
        return None  # The training process had no histogram for this layer.
    dip = float(decoded.dips[layer_row])
    return Histogram(
        layer=layer,
        step=at[0],
        attempt=at[1],
        edges=np.linspace(float(decoded.low[layer_row]), float(decoded.high[layer_row]), HISTOGRAM_BINS + 1),
        counts=decoded.counts[layer_row],
        dip=None if math.isnan(dip) else dip,
    )
