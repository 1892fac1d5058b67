"""Tiles as a query reads them: only the columns that it needs, decoded once and cached.

Tiles never change, so a cached tile is never stale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row, Select, case, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.errors import TileCorruptError
from server.pyramid.blobs import BlobError
from server.pyramid.buckets import Buckets, widen
from server.pyramid.coverage import Piece
from server.pyramid.footprint import ARRAY_BYTES, ENTRY_BYTES
from server.pyramid.row_selection import RowSelection
from server.pyramid.tiles import (
    LevelZero,
    SpanHeader,
    TileBlobs,
    TileKey,
    decode_buckets,
    decode_values,
    reduce_values,
    shared_rows,
    title_of,
    unpack_steps,
)
from server.schema import tiles
from server.storage.id_list import padded
from server.storage.measurements.byte_cache import ByteCache

MAX_IDS = 256
"""Maximum number of ids in one statement."""

NAME_BYTES = 128
"""Approximate size of a name in memory, in bytes."""

Tile = LevelZero | Buckets
"""Decoded tile: values at level 0, buckets above it."""
RowBuckets = tuple[Buckets, NDArray[np.int64]]
"""Buckets, and the row of the canvas that each of their rows belongs to, shape (rows,)."""


@dataclass(frozen=True, kw_only=True)
class FoundTile:
    """Tile of a query, either decoded from the cache or still encoded."""

    key: TileKey
    names: tuple[str, ...] | None
    """Names of the scalars in the tile, or None for a statistic."""
    blobs: TileBlobs | None = None
    tile: Tile | None = None


@dataclass(frozen=True, kw_only=True)
class LoadedTiles:
    """Tiles that a query has read."""

    steps: dict[int, bytes]
    """Encoded steps, keyed by span id."""
    tiles: dict[int, list[FoundTile]] = field(default_factory=dict)
    """Tiles that are not lost, keyed by span id."""


class TileSource:
    """Reads tiles through a cache."""

    def __init__(self, cache: ByteCache) -> None:
        self._cache = cache

    async def load(
        self, connection: AsyncConnection, pieces: Sequence[Piece], steps: dict[int, bytes], selection: RowSelection
    ) -> LoadedTiles:
        """Fetch the selected tiles that the cache does not hold. ``steps`` are the encoded steps keyed by span id."""
        loaded = LoadedTiles(steps=steps)
        missing = []
        for number in dict.fromkeys(piece.span.id for piece in pieces):
            held = self._cached(number, selection)
            if held is None:
                missing.append(number)
            loaded.tiles[number] = held or []
        for some in batches(missing):
            for row in await connection.execute(tile_query(some, selection)):
                if not row.is_lost:
                    loaded.tiles[row.span_id].append(_found(row))
        for number in missing:
            names = [(found.key, found.names) for found in loaded.tiles[number]]
            self._cache.put(
                _directory_key(number, selection),
                names,
                ENTRY_BYTES + NAME_BYTES * sum(len(some or key) for key, some in names),
            )
        return loaded

    def piece_buckets(self, piece: Piece, loaded: LoadedTiles, selection: RowSelection, width: int) -> list[RowBuckets]:
        """Return the selected values of a piece as buckets of ``width`` steps, each with the rows they belong to.

        Decodes tiles, so it belongs in a thread. Raises `TileCorruptError`.
        """
        span = piece.span
        names = [name for name, rank in selection.scalars.items() if rank == span.rank]
        rows = {name: row for row, name in enumerate(selection.scalars)}
        result: list[RowBuckets] = []
        for found in loaded.tiles[span.id]:
            if found.names is None:
                there = selection.layers.get((span.writer_id, found.key[0]))
                if there is not None:
                    result.append((self._buckets(piece, found, loaded, selection, width), there))
                continue
            here, at = shared_rows(found.names, names)
            if len(here):
                there = np.array([rows[names[row]] for row in at], dtype=np.int64)
                result.append((self._buckets(piece, found, loaded, selection, width).of(here), there))
        return result

    def _cached(self, number: int, selection: RowSelection) -> list[FoundTile] | None:
        """Return all selected tiles of a span, or None where the cache lacks one of them."""
        names = self._cache.get(_directory_key(number, selection))
        if names is None:
            return None
        held = []
        for key, some in names:
            if some is None or not selection.scalars.keys().isdisjoint(some):
                tile = self._cache.get(_tile_key(number, key, selection))
                if tile is None:
                    return None
                held.append(FoundTile(key=key, names=some, tile=tile))
        return held

    def _buckets(
        self, piece: Piece, found: FoundTile, loaded: LoadedTiles, selection: RowSelection, width: int
    ) -> Buckets:
        span = piece.span
        numbers = self._steps(span, loaded)
        tile = found.tile
        if tile is None:
            assert found.blobs is not None
            try:
                if span.level == 0:
                    tile = decode_values(found.blobs, span.entries)
                else:
                    tile = decode_buckets(found.blobs, numbers, fields=selection.fields)
            except BlobError as error:
                raise TileCorruptError(span.id, title_of(found.key, found.names), str(error)) from error
            self._cache.put(_tile_key(span.id, found.key, selection), tile, ENTRY_BYTES + tile.nbytes)
        if isinstance(tile, LevelZero):
            return reduce_values(tile, numbers, width, fields=selection.fields, step_range=piece.step_range)
        first, last = piece.step_range
        return widen(tile.between(first // span.width, last // span.width), width // span.width)

    def _steps(self, span: SpanHeader, loaded: LoadedTiles) -> NDArray[np.int64]:
        steps: NDArray[np.int64] | None = self._cache.get(("steps", span.id))
        if steps is None:
            try:
                steps = unpack_steps(loaded.steps[span.id])
            except BlobError as error:
                raise TileCorruptError(span.id, "steps", str(error)) from error
            self._cache.put(("steps", span.id), steps, ENTRY_BYTES + ARRAY_BYTES + steps.nbytes)
        return steps


def batches(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """Split ids into `padded` lists of at most `MAX_IDS`, one for each statement."""
    return (padded(numbers[start : start + MAX_IDS]) for start in range(0, len(numbers), MAX_IDS))


def tile_query(span_ids: Sequence[int], selection: RowSelection) -> Select[Any]:
    """Return the statement for the selected tiles of spans, reading only the columns that the fields need."""
    needed = {tiles.c.nonfinite}
    if selection.fields & {"min", "last"}:
        needed.add(tiles.c.least)
    if selection.fields & {"max", "last"}:
        needed.add(tiles.c.greatest)
    # At level 0 this column holds the values. Above it, it holds last values, which are read only where selected.
    last = tiles.c.last if "last" in selection.fields else case((tiles.c.least.is_(None), tiles.c.last))
    query = select(
        *(tiles.c[name] for name in ("span_id", "layout", "name", "rows", "names", "present")),
        *sorted(needed, key=str),
        last.label("last"),
        tiles.c.last.is_(None).label("is_lost"),
    ).where(tiles.c.span_id.in_(span_ids), tiles.c.layout.in_(selection.layouts))
    return query if selection.statistic is None else query.where(tiles.c.name == selection.statistic)


def _found(row: Row[Any]) -> FoundTile:
    fields = row._mapping
    names = None if row.names is None else tuple(row.names)
    return FoundTile(
        key=(row.layout, row.name),
        names=names,
        blobs=TileBlobs(
            rows=row.rows,
            names=names,
            present=row.present,
            least=fields.get("least"),
            greatest=fields.get("greatest"),
            last=b"" if row.last is None else row.last,
            nonfinite=row.nonfinite,
        ),
    )


def _directory_key(number: int, selection: RowSelection) -> tuple[object, ...]:
    return ("tiles", number, selection.statistic, None if selection.statistic is None else tuple(selection.layouts))


def _tile_key(number: int, key: TileKey, selection: RowSelection) -> tuple[object, ...]:
    return ("tile", number, key, selection.fields)
