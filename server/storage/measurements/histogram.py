"""Histograms of update and ratio per layer: how they are stored, their dip, and the nearest one to a step."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import diptest
import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import and_, or_, select

from client_sdk.protocol import HISTOGRAM_BINS, Histograms
from server.errors import HistogramCorruptError
from server.pyramid.columns import pack_array, unpack_array
from server.schema import histograms, layouts, writers
from server.storage.database import Database

DIP_POINTS = 512
"""A histogram is expanded to at most so many points. The dip of n points is never below 1/(2n): 0.001 here."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """One layer at one step."""

    layer: str
    step: int
    attempt: int
    edges: NDArray[np.float64]
    """(65,)"""
    counts: NDArray[np.uint32]
    """(64,)"""
    dip: float | None


def encode(histogram: Histograms, layers: int, dips: NDArray[np.float32] | None) -> bytes:
    """``[layers, low, high, counts, dips]``: float32, float32, uint32 × 64, float32, packed as in `storage.columns`;
    ``dips`` is null where none were computed."""
    return msgspec.msgpack.encode(
        [
            layers,
            pack_array(np.frombuffer(histogram.low, "<f4"), "<f4"),
            pack_array(np.frombuffer(histogram.high, "<f4"), "<f4"),
            pack_array(np.frombuffer(histogram.counts, "<u4"), "<u4"),
            None if dips is None else pack_array(dips, "<f4"),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The histograms of one quantity at one step, as they are stored."""

    low: NDArray[np.float32]
    """(layers,); like ``high`` not finite where the training process had none."""
    high: NDArray[np.float32]
    counts: NDArray[np.uint32]
    """(layers, 64)"""
    dips: NDArray[np.float32]
    """(layers,), NaN where none were computed."""

    @property
    def measured(self) -> NDArray[np.bool_]:
        return np.isfinite(self.low) & np.isfinite(self.high)


def decode(number: int, payload: bytes) -> Shapes:
    """What `encode` wrote, of the row ``number``. Raises `HistogramCorruptError`."""
    try:
        layers, low, high, counts, dips = msgspec.msgpack.decode(
            payload, type=tuple[int, bytes, bytes, bytes, bytes | None]
        )
        return Shapes(
            low=unpack_array(low, "<f4", layers),
            high=unpack_array(high, "<f4", layers),
            counts=unpack_array(counts, "<u4", layers * HISTOGRAM_BINS).reshape(layers, HISTOGRAM_BINS),
            dips=np.full(layers, np.nan, np.float32) if dips is None else unpack_array(dips, "<f4", layers),
        )
    except (msgspec.DecodeError, ValueError) as error:
        raise HistogramCorruptError(number, str(error)) from error


def dips_of(counts: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Hartigan's dip of each row of counts (layers × 64): 0.001 … 0.25, above about 0.03 for two clear modes.

    The counts are expanded to the quantiles of the distribution that is uniform within each bin, so that neither the
    number of parameters nor the ties within a bin matter. NaN for a row without counts.
    Hartigan & Hartigan, "The Dip Test of Unimodality", Annals of Statistics 13 (1985).
    """
    dips = np.full(len(counts), np.nan, dtype=np.float32)
    edges = np.arange(counts.shape[1] + 1, dtype=np.float64)
    for row, bins in enumerate(counts):
        total = int(bins.sum())
        if total == 0:
            continue
        points = min(total, DIP_POINTS)
        cumulated = np.concatenate(([0.0], np.cumsum(bins, dtype=np.float64)))
        quantiles = (np.arange(points) + 0.5) * (total / points)
        dips[row] = diptest.dipstat(np.interp(quantiles, cumulated, edges))
    return dips


class HistogramQuery:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def nearest(self, run_id: str, rank: int, layer: str, which: str, step: int | None) -> Histogram | None:
        """The histogram of a layer nearest to ``step``, by default the last; at one step the latest attempt's.

        Raises `HistogramCorruptError` and `DatabaseError`.
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
            # A name for each (writer, layout) that has the layer; there are as many as the run had restarts.
            mine = or_(
                *(and_(histograms.c.writer_id == writer, histograms.c.layout == number) for writer, number in rows_of)
            )
            base = select(histograms).where(histograms.c.run_id == run_id, histograms.c.which == which, mine)
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
        place = rows_of[row.writer_id, row.layout]
        return await asyncio.to_thread(_decode, row.id, row.payload, place, layer, (row.step, row.attempt))


def _decode(number: int, payload: bytes, row: int, layer: str, at: tuple[int, int]) -> Histogram | None:
    shapes = decode(number, payload)
    if not shapes.measured[row]:
        return None  # the training process had none for this layer
    dip = float(shapes.dips[row])
    return Histogram(
        layer=layer,
        step=at[0],
        attempt=at[1],
        edges=np.linspace(float(shapes.low[row]), float(shapes.high[row]), HISTOGRAM_BINS + 1),
        counts=shapes.counts[row],
        dip=None if math.isnan(dip) else dip,
    )
