"""Tiles as a query reads them: the columns that it needs, decoded once and kept.

Tiles never change, so what is kept is never stale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row, Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.errors import TileCorruptError
from server.schema import spans, tiles
from server.storage.blobs import BlobError
from server.storage.buckets import Buckets, empty
from server.storage.lru import ARRAY_BYTES, ENTRY_BYTES, ByteLru
from server.storage.pyramid import Piece
from server.storage.spans import SpanPlace
from server.storage.tiles import (
    SCALARS,
    LevelZero,
    Series,
    TileBlobs,
    decode_buckets,
    decode_values,
    reduce_values,
    unpack_steps,
)
from server.storage.wanted import Wanted

FETCH = 256
"""Rows of one statement."""

Tile = LevelZero | Buckets

_NOTHING = empty(1, np.dtype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a query has read and not decoded yet, and what it found in the cache."""

    steps: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    tiles: dict[tuple[int, Series], Tile] = field(default_factory=dict)
    raw_steps: dict[int, bytes] = field(default_factory=dict)
    raw_tiles: dict[tuple[int, Series], TileBlobs | None] = field(default_factory=dict)
    """None: lost."""


class TileSource:
    def __init__(self, cache: ByteLru) -> None:
        self._cache = cache

    async def load(self, connection: AsyncConnection, pieces: Sequence[Piece], wanted: Wanted) -> Loaded:
        """Fetch what the cache does not have."""
        loaded = Loaded()
        known = {piece.span.id: piece.span for piece in pieces}
        missing: dict[bool, list[int]] = {True: [], False: []}
        for number, span in known.items():
            steps = self._cache.get(("steps", number))
            if steps is not None:
                loaded.steps[number] = steps
            all_held = True
            for series in wanted.series(span.rank):
                tile = self._cache.get(_key(span, series, wanted))
                all_held = all_held and tile is not None
                if tile is not None:
                    loaded.tiles[number, series] = tile
            if not all_held:
                missing[span.level == 0].append(number)
        for some in batches([number for number in known if number not in loaded.steps]):
            query = select(spans.c.id, spans.c.steps).where(spans.c.id.in_(some))
            loaded.raw_steps.update({row.id: row.steps for row in await connection.execute(query)})
        for is_level_zero, numbers in missing.items():
            for some in batches(numbers):
                for row in await connection.execute(tile_query(some, wanted, is_level_zero=is_level_zero)):
                    loaded.raw_tiles[row.span_id, (row.layout, row.name)] = _blobs_of(row)
        return loaded

    def take(self, piece: Piece, series: Series, loaded: Loaded, wanted: Wanted, width: int) -> tuple[int, Buckets]:
        """(width, buckets) of what a piece has of a series. Decodes; for a thread. Raises `TileCorruptError`."""
        span = piece.span
        numbers = self._steps(span, loaded)
        tile = loaded.tiles.get((span.id, series))
        if tile is None:
            tile = self._decode(span, series, loaded, numbers, wanted)
            self._cache.put(_key(span, series, wanted), tile, ENTRY_BYTES + tile.nbytes)
        if isinstance(tile, LevelZero):
            return width, reduce_values(tile, numbers, width, is_scalar=series[0] == SCALARS, window=piece.window)
        first, last = piece.window
        return span.width, tile.between(first // span.width, last // span.width)

    def _steps(self, span: SpanPlace, loaded: Loaded) -> NDArray[np.int64]:
        found = loaded.steps.get(span.id)
        if found is None:
            try:
                found = loaded.steps[span.id] = unpack_steps(loaded.raw_steps[span.id])
            except BlobError as error:
                raise TileCorruptError(span.id, "steps", str(error)) from error
            self._cache.put(("steps", span.id), found, ENTRY_BYTES + ARRAY_BYTES + found.nbytes)
        return found

    @staticmethod
    def _decode(span: SpanPlace, series: Series, loaded: Loaded, numbers: NDArray[np.int64], wanted: Wanted) -> Tile:
        blobs = loaded.raw_tiles.get((span.id, series))
        if blobs is None:
            return _NOTHING
        is_scalar = series[0] == SCALARS
        try:
            if span.level == 0:
                return decode_values(blobs, span.entries, is_scalar=is_scalar)
            return decode_buckets(blobs, numbers, is_scalar=is_scalar, fields=wanted.fields)
        except BlobError as error:
            raise TileCorruptError(span.id, series[1], str(error)) from error


def batches(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    return (numbers[start : start + FETCH] for start in range(0, len(numbers), FETCH))


def tile_query(span_ids: Sequence[int], wanted: Wanted, *, is_level_zero: bool) -> Select[Any]:
    """The asked tiles of spans, and of them only the columns that are needed."""
    needed = {"last"}
    if not is_level_zero:
        needed = {"nonfinite"}
        needed |= {"least"} if "min" in wanted.fields else set()
        needed |= {"greatest"} if "max" in wanted.fields else set()
        needed |= {"least", "greatest", "last"} if "last" in wanted.fields else set()
    columns = [tiles.c[name] for name in ("span_id", "layout", "name", "rows", "present", *sorted(needed))]
    query = select(*columns, tiles.c.last.is_(None).label("is_lost")).where(tiles.c.span_id.in_(span_ids))
    if wanted.statistic is not None:
        return query.where(tiles.c.layout.in_(sorted(wanted.layouts)), tiles.c.name == wanted.statistic)
    names = sorted(frozenset[str]().union(*wanted.scalars.values()))
    return query.where(tiles.c.layout == SCALARS, tiles.c.name.in_(names))


def _blobs_of(row: Row[Any]) -> TileBlobs | None:
    if row.is_lost:
        return None
    fields = row._mapping
    return TileBlobs(
        rows=row.rows,
        present=row.present,
        least=fields.get("least"),
        greatest=fields.get("greatest"),
        last=fields.get("last", b""),
        nonfinite=fields.get("nonfinite"),
    )


def _key(span: SpanPlace, series: Series, wanted: Wanted) -> tuple[object, ...]:
    return ("tile", span.id, series, wanted.fields if span.level else None)
