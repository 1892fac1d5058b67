"""The segments that no tile holds yet, as a query reads them: decoded once and kept; segments never change."""

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
from server.pyramid.buckets import Buckets
from server.pyramid.columns import Block, Payload
from server.pyramid.footprint import ARRAY_BYTES, ENTRY_BYTES
from server.pyramid.tiles import LevelZero, layer_values, reduce_values, scalar_values, shared_rows
from server.schema import segments
from server.storage.lru import ByteLru
from server.storage.measurements.spans import verify
from server.storage.measurements.tile_source import batches
from server.storage.measurements.views import View, Window
from server.storage.measurements.wanted import Wanted


@dataclass(frozen=True, kw_only=True)
class TailPlace:
    """A segment and the steps that are shown of it."""

    id: int
    rank: int
    writer_id: int
    attempt: int
    first_seq: int
    window: Window


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The part of a segment that a query needs."""

    steps: NDArray[np.int64]
    names: tuple[str, ...] = ()
    """Of the scalars, sorted."""
    scalars: LevelZero | None = None
    """A row for each name: in one piece, as hundreds of short arrays would take many times their numbers."""
    blocks: tuple[tuple[int, NDArray[np.int32], Block], ...] = ()

    @property
    def nbytes(self) -> int:
        """What it takes in memory: of a short segment mostly the objects, not the numbers."""
        arrays: list[NDArray[Any]] = [self.steps]
        for _, rows, block in self.blocks:
            arrays += (rows, block)
        scalars = 0 if self.scalars is None else self.scalars.nbytes + sys.getsizeof(self.names)
        return ENTRY_BYTES + scalars + sum(ARRAY_BYTES + array.nbytes for array in arrays)


class TailSource:
    def __init__(self, cache: ByteLru) -> None:
        self._cache = cache

    async def load(
        self, connection: AsyncConnection, run_id: str, view: View, window: Window, wanted: Wanted
    ) -> list[tuple[TailPlace, Tail]]:
        """Those that the window shows. Raises `SegmentCorruptError`."""
        places = await _places(connection, run_id, view, window)
        places = [place for place in places if wanted.is_from(place.rank, place.writer_id)]
        # All scalars of a segment are decoded together: they lie together, and a page asks for several.
        found: dict[int, Tail] = {}
        for place in places:
            cached: Tail | None = self._cache.get(("tail", place.id, wanted.statistic))
            if cached is not None:
                found[place.id] = cached
        for some in batches([place.id for place in places if place.id not in found]):
            query = select(segments.c.id, segments.c.payload, segments.c.checksum).where(segments.c.id.in_(some))
            rows = [tuple(row) for row in await connection.execute(query)]
            for number, tail in await asyncio.to_thread(decode, rows, wanted.statistic):
                found[number] = tail
                self._cache.put(("tail", number, wanted.statistic), tail, tail.nbytes)
        return [(place, found[place.id]) for place in places]


def drawn(place: TailPlace, tail: Tail, wanted: Wanted, width: int) -> list[tuple[Buckets, NDArray[np.int64]]]:
    """What is asked of the segment, as buckets of ``width`` steps, and the rows that they are of."""
    if wanted.statistic is None:
        names = [name for name, rank in wanted.scalars.items() if rank == place.rank]
        here, there = shared_rows(tail.names, names)
        if tail.scalars is None or not len(here):
            return []
        rows = {name: row for row, name in enumerate(wanted.scalars)}
        buckets = reduce_values(tail.scalars.of(here), tail.steps, width, fields=wanted.fields, window=place.window)
        return [(buckets, np.array([rows[names[row]] for row in there], dtype=np.int64))]
    found = []
    for layout, at, block in tail.blocks:
        layers = wanted.layers.get((place.writer_id, layout))
        if layers is not None:
            values = layer_values(at.astype(np.int64), block)
            found.append((reduce_values(values, tail.steps, width, fields=wanted.fields, window=place.window), layers))
    return found


async def _places(connection: AsyncConnection, run_id: str, view: View, window: Window) -> list[TailPlace]:
    table = segments.c
    query = select(
        table.id, table.rank, table.writer_id, table.attempt, table.first_seq, table.first_step, table.last_step
    ).where(table.run_id == run_id, table.first_step <= window[1], table.last_step >= window[0])
    found = []
    for row in await connection.execute(query):
        shown = view.windows.get((row.rank, row.attempt))
        if shown is None:
            continue
        part = (max(window[0], shown[0], row.first_step), min(window[1], shown[1], row.last_step))
        if part[0] <= part[1]:
            found.append(
                TailPlace(
                    id=row.id,
                    rank=row.rank,
                    writer_id=row.writer_id,
                    attempt=row.attempt,
                    first_seq=row.first_seq,
                    window=part,
                )
            )
    return found


def decode(rows: Sequence[tuple[Any, ...]], statistic: str | None) -> list[tuple[int, Tail]]:
    """(id, payload, checksum) of segments as a query keeps them. Takes a while; for a thread.

    ``statistic``: None for the scalars. Raises `SegmentCorruptError`.
    """
    decoded = []
    for number, data, checksum in rows:
        verify(number, data, checksum)
        try:
            payload = Payload(data)
            if statistic is None:
                tail = Tail(steps=payload.steps(), names=payload.names, scalars=scalar_values(*payload.logged()))
            else:
                tail = Tail(steps=payload.steps(), blocks=tuple(payload.statistic(statistic)))
        except ValueError as error:
            raise SegmentCorruptError(number, str(error)) from error
        decoded.append((number, tail))
    return decoded
