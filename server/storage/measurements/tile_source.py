"""Tiles as a query reads them: the columns that it needs, decoded once and kept.

Tiles never change, so what is kept is never stale.
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
from server.pyramid.footprint import ARRAY_BYTES, ENTRY_BYTES
from server.pyramid.tiles import (
    LevelZero,
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
from server.storage.lru import ByteLru
from server.storage.measurements.coverage import Piece
from server.storage.measurements.spans import SpanPlace
from server.storage.measurements.wanted import Wanted

FETCH = 256
"""Rows of one statement."""

NAME_BYTES = 128
"""Memory of a name, about."""

Tile = LevelZero | Buckets
Drawn = tuple[Buckets, NDArray[np.int64]]
"""Buckets, and the rows of the canvas that they are of."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A tile that a query has found, decoded in the cache or still as bytes."""

    key: TileKey
    names: tuple[str, ...] | None
    blobs: TileBlobs | None = None
    tile: Tile | None = None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a query has read."""

    steps: dict[int, bytes]
    """Span to its steps."""
    tiles: dict[int, list[Found]] = field(default_factory=dict)
    """Span to its tiles, without those that are lost."""


class TileSource:
    def __init__(self, cache: ByteLru) -> None:
        self._cache = cache

    async def load(
        self, connection: AsyncConnection, pieces: Sequence[Piece], steps: dict[int, bytes], wanted: Wanted
    ) -> Loaded:
        """Fetch what the cache does not have. ``steps``: of the spans, as they are stored."""
        loaded = Loaded(steps=steps)
        missing = []
        for number in dict.fromkeys(piece.span.id for piece in pieces):
            held = self._held(number, wanted)
            if held is None:
                missing.append(number)
            loaded.tiles[number] = held or []
        for some in batches(missing):
            for row in await connection.execute(tile_query(some, wanted)):
                if not row.is_lost:
                    loaded.tiles[row.span_id].append(_found(row))
        for number in missing:
            names = [(found.key, found.names) for found in loaded.tiles[number]]
            self._cache.put(
                _directory(number, wanted),
                names,
                ENTRY_BYTES + NAME_BYTES * sum(len(some or key) for key, some in names),
            )
        return loaded

    def drawn(self, piece: Piece, loaded: Loaded, wanted: Wanted, width: int) -> list[Drawn]:
        """What a piece has of what is asked. Decodes; for a thread. Raises `TileCorruptError`."""
        span = piece.span
        names = [name for name, rank in wanted.scalars.items() if rank == span.rank]
        rows = {name: row for row, name in enumerate(wanted.scalars)}
        drawn: list[Drawn] = []
        for found in loaded.tiles[span.id]:
            if found.names is None:
                there = wanted.layers.get((span.writer_id, found.key[0]))
                if there is not None:
                    drawn.append((self._buckets(piece, found, loaded, wanted, width), there))
                continue
            here, at = shared_rows(found.names, names)
            if len(here):
                there = np.array([rows[names[row]] for row in at], dtype=np.int64)
                drawn.append((self._buckets(piece, found, loaded, wanted, width).of(here), there))
        return drawn

    def _held(self, number: int, wanted: Wanted) -> list[Found] | None:
        """All tiles of a span that are asked for, where the cache has every one."""
        names = self._cache.get(_directory(number, wanted))
        if names is None:
            return None
        held = []
        for key, some in names:
            if some is None or not wanted.scalars.keys().isdisjoint(some):
                tile = self._cache.get(_key(number, key, wanted))
                if tile is None:
                    return None
                held.append(Found(key=key, names=some, tile=tile))
        return held

    def _buckets(self, piece: Piece, found: Found, loaded: Loaded, wanted: Wanted, width: int) -> Buckets:
        span = piece.span
        numbers = self._steps(span, loaded)
        tile = found.tile
        if tile is None:
            assert found.blobs is not None
            try:
                if span.level == 0:
                    tile = decode_values(found.blobs, span.entries)
                else:
                    tile = decode_buckets(found.blobs, numbers, fields=wanted.fields)
            except BlobError as error:
                raise TileCorruptError(span.id, title_of(found.key, found.names), str(error)) from error
            self._cache.put(_key(span.id, found.key, wanted), tile, ENTRY_BYTES + tile.nbytes)
        if isinstance(tile, LevelZero):
            return reduce_values(tile, numbers, width, fields=wanted.fields, window=piece.window)
        first, last = piece.window
        return widen(tile.between(first // span.width, last // span.width), width // span.width)

    def _steps(self, span: SpanPlace, loaded: Loaded) -> NDArray[np.int64]:
        steps: NDArray[np.int64] | None = self._cache.get(("steps", span.id))
        if steps is None:
            try:
                steps = unpack_steps(loaded.steps[span.id])
            except BlobError as error:
                raise TileCorruptError(span.id, "steps", str(error)) from error
            self._cache.put(("steps", span.id), steps, ENTRY_BYTES + ARRAY_BYTES + steps.nbytes)
        return steps


def batches(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """As many as one statement may name, `padded`."""
    return (padded(numbers[start : start + FETCH]) for start in range(0, len(numbers), FETCH))


def tile_query(span_ids: Sequence[int], wanted: Wanted) -> Select[Any]:
    """The asked tiles of spans, and of them only the columns that are needed."""
    needed = {tiles.c.nonfinite}
    if wanted.fields & {"min", "last"}:
        needed.add(tiles.c.least)
    if wanted.fields & {"max", "last"}:
        needed.add(tiles.c.greatest)
    # At level 0 the values; above it, those that nobody asked for stay where they are.
    last = tiles.c.last if "last" in wanted.fields else case((tiles.c.least.is_(None), tiles.c.last))
    query = select(
        *(tiles.c[name] for name in ("span_id", "layout", "name", "rows", "names", "present")),
        *sorted(needed, key=str),
        last.label("last"),
        tiles.c.last.is_(None).label("is_lost"),
    ).where(tiles.c.span_id.in_(span_ids), tiles.c.layout.in_(wanted.layouts))
    return query if wanted.statistic is None else query.where(tiles.c.name == wanted.statistic)


def _found(row: Row[Any]) -> Found:
    fields = row._mapping
    names = None if row.names is None else tuple(row.names)
    return Found(
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


def _directory(number: int, wanted: Wanted) -> tuple[object, ...]:
    return ("tiles", number, wanted.statistic, None if wanted.statistic is None else tuple(wanted.layouts))


def _key(number: int, key: TileKey, wanted: Wanted) -> tuple[object, ...]:
    return ("tile", number, key, wanted.fields)
