"""Segments that no tile contains yet, as a query reads them. Segments never change, so decoded ones are cached."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.errors import SegmentCorruptError
from server.pyramid.buckets import StepRange
from server.pyramid.columns import Block, Payload
from server.pyramid.footprint import ARRAY_BYTES, ENTRY_BYTES
from server.pyramid.row_selection import RowSelection
from server.pyramid.tiles import LevelZero, layer_values, reduce_values, scalar_values, shared_rows
from server.schema import segments
from server.storage.measurements.attempt_view import AttemptView
from server.storage.measurements.byte_cache import ByteCache
from server.storage.measurements.spans import verify
from server.storage.measurements.tile_source import RowBuckets, batches


@dataclass(frozen=True, kw_only=True)
class OpenSegment:
    """Segment that no tile contains yet, and the steps of it that a query shows."""

    id: int
    rank: int
    writer_id: int
    attempt: int
    first_seq: int
    step_range: StepRange


@dataclass(frozen=True, kw_only=True)
class DecodedSegment:
    """Columns of a segment that a query needs: all scalars, or one statistic."""

    steps: NDArray[np.int64]
    """Steps of the records, shape (n,)."""
    names: tuple[str, ...] = ()
    """Names of the scalars, sorted."""
    scalars: LevelZero | None = None
    """Values of the scalars, one row for each name. One array, because the objects around hundreds of short arrays
    would take many times the memory of their numbers."""
    blocks: tuple[tuple[int, NDArray[np.int32], Block], ...] = ()
    """Values of the statistic for each layout that has it: (layout, records (m,), values (layers, m))."""

    @property
    def nbytes(self) -> int:
        """Size in memory in bytes. In a short segment, most of it is objects and not numbers."""
        arrays: list[NDArray[Any]] = [self.steps]
        for _, rows, block in self.blocks:
            arrays += (rows, block)
        scalars = 0 if self.scalars is None else self.scalars.nbytes + sys.getsizeof(self.names)
        return ENTRY_BYTES + scalars + sum(ARRAY_BYTES + array.nbytes for array in arrays)


class OpenSegmentSource:
    """Reads open segments through a cache."""

    def __init__(self, cache: ByteCache) -> None:
        self._cache = cache

    async def load(
        self,
        connection: AsyncConnection,
        run_id: str,
        view: AttemptView,
        step_range: StepRange,
        selection: RowSelection,
    ) -> list[tuple[OpenSegment, DecodedSegment]]:
        """Return the open segments that the view shows in the range. Raises `SegmentCorruptError`."""
        shown = [
            segment
            for segment in await _shown_segments(connection, run_id, view, step_range)
            if selection.includes(segment.rank, segment.writer_id)
        ]
        # All scalars of a segment are decoded together: they are stored together, and a page requests several.
        found: dict[int, DecodedSegment] = {}
        for segment in shown:
            cached: DecodedSegment | None = self._cache.get(("segment", segment.id, selection.statistic))
            if cached is not None:
                found[segment.id] = cached
        for some in batches([segment.id for segment in shown if segment.id not in found]):
            query = select(segments.c.id, segments.c.payload, segments.c.checksum).where(segments.c.id.in_(some))
            rows = [tuple(row) for row in await connection.execute(query)]
            for number, decoded in await asyncio.to_thread(decode, rows, selection.statistic):
                found[number] = decoded
                self._cache.put(("segment", number, selection.statistic), decoded, decoded.nbytes)
        return [(segment, found[segment.id]) for segment in shown]


def segment_buckets(
    segment: OpenSegment, decoded: DecodedSegment, selection: RowSelection, width: int
) -> list[RowBuckets]:
    """Return the selected values of a segment as buckets of ``width`` steps, each with the rows they belong to."""
    if selection.statistic is None:
        names = [name for name, rank in selection.scalars.items() if rank == segment.rank]
        here, there = shared_rows(decoded.names, names)
        if decoded.scalars is None or not len(here):
            return []
        rows = {name: row for row, name in enumerate(selection.scalars)}
        buckets = reduce_values(
            decoded.scalars.of(here), decoded.steps, width, fields=selection.fields, step_range=segment.step_range
        )
        return [(buckets, np.array([rows[names[row]] for row in there], dtype=np.int64))]
    found = []
    for layout, at, block in decoded.blocks:
        layers = selection.layers.get((segment.writer_id, layout))
        if layers is not None:
            values = layer_values(at.astype(np.int64), block)
            buckets = reduce_values(
                values, decoded.steps, width, fields=selection.fields, step_range=segment.step_range
            )
            found.append((buckets, layers))
    return found


async def _shown_segments(
    connection: AsyncConnection, run_id: str, view: AttemptView, step_range: StepRange
) -> list[OpenSegment]:
    table = segments.c
    query = select(
        table.id, table.rank, table.writer_id, table.attempt, table.first_seq, table.first_step, table.last_step
    ).where(table.run_id == run_id, table.first_step <= step_range[1], table.last_step >= step_range[0])
    found = []
    for row in await connection.execute(query):
        shown = view.step_ranges.get((row.rank, row.attempt))
        if shown is None:
            continue
        part = (max(step_range[0], shown[0], row.first_step), min(step_range[1], shown[1], row.last_step))
        if part[0] <= part[1]:
            found.append(
                OpenSegment(
                    id=row.id,
                    rank=row.rank,
                    writer_id=row.writer_id,
                    attempt=row.attempt,
                    first_seq=row.first_seq,
                    step_range=part,
                )
            )
    return found


def decode(rows: Sequence[tuple[Any, ...]], statistic: str | None) -> list[tuple[int, DecodedSegment]]:
    """Decode (id, payload, checksum) rows of segments; returns (id, decoded segment) pairs.

    Decodes one statistic, or the scalars where ``statistic`` is None. Takes long enough to belong in a thread. Raises
    `SegmentCorruptError`.
    """
    found = []
    for number, data, checksum in rows:
        verify(number, data, checksum)
        try:
            payload = Payload(data)
            if statistic is None:
                decoded = DecodedSegment(
                    steps=payload.steps(), names=payload.names, scalars=scalar_values(*payload.logged())
                )
            else:
                decoded = DecodedSegment(steps=payload.steps(), blocks=tuple(payload.statistic(statistic)))
        except ValueError as error:
            raise SegmentCorruptError(number, str(error)) from error
        found.append((number, decoded))
    return found
