"""Queries for the histograms of one layer: the nearest to a step, and some over a range of steps."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

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
            rows_of = await _rows_of(connection, run_id, rank, layer)
            if not rows_of:
                return None
            has_layer = _has_layer(rows_of)
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

    async def over(
        self, run_id: str, rank: int, layer: str, which: str, *, steps: tuple[int, int], at_most: int
    ) -> list[Histogram]:
        """Return histograms of a layer in a range of ``steps``, both included, in their order.

        If there are more than ``at_most``, they are spread evenly over those that there are. Where several attempts
        have one at the same step, the latest attempt's is returned. Raises `HistogramCorruptError` and `DatabaseError`.
        """
        async with self._database.read() as connection:
            rows_of = await _rows_of(connection, run_id, rank, layer)
            if not rows_of:
                return []
            known = await connection.execute(
                select(histograms.c.step, histograms.c.id)
                .where(histograms.c.run_id == run_id, histograms.c.which == which, _has_layer(rows_of))
                .where(histograms.c.step.between(*steps))
                .order_by(histograms.c.step, histograms.c.id)
            )
            ids = list({row.step: row.id for row in known}.values())
            count = min(at_most, len(ids))
            chosen = {ids[round(place * (len(ids) - 1) / max(count - 1, 1))] for place in range(count)}
            query = select(histograms).where(histograms.c.id.in_(chosen)).order_by(histograms.c.step)
            found = (await connection.execute(query)).all()
        return await asyncio.to_thread(
            lambda: [
                decoded
                for row in found
                if (decoded := _decode(row.id, row.payload, rows_of[row.writer_id, row.layout], layer,
                                       (row.step, row.attempt))) is not None
            ]
        )  # fmt: skip


async def _rows_of(connection: AsyncConnection, run_id: str, rank: int, layer: str) -> dict[tuple[int, int], int]:
    """Return the row of a layer in each layout that has it, keyed by writer and number of the layout."""
    holders = await connection.execute(
        select(layouts.c.writer_id, layouts.c.number, layouts.c.layers)
        .join(writers, writers.c.id == layouts.c.writer_id)
        .where(writers.c.run_id == run_id, writers.c.rank == rank)
    )
    return {(row.writer_id, row.number): row.layers.index(layer) for row in holders if layer in row.layers}


def _has_layer(rows_of: dict[tuple[int, int], int]) -> ColumnElement[bool]:
    """Return the condition of the histograms of layouts that have a layer, as many as there were restarts."""
    return or_(*(and_(histograms.c.writer_id == writer, histograms.c.layout == number) for writer, number in rows_of))


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
