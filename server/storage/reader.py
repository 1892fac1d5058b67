"""Buckets of any series over any range, from tiles and from the segments that no tile holds yet.

One snapshot of the database answers a query, so a compaction under way is seen as a whole or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.errors import TileCorruptError
from server.schema import spans
from server.storage.buckets import Buckets, choose_width
from server.storage.database import Database
from server.storage.lru import ByteLru
from server.storage.pyramid import Piece, overlapping, split
from server.storage.spans import PLACE, SpanPlace, place_of
from server.storage.tails import Tail, TailPlace, TailSource, take_tail
from server.storage.tile_source import Loaded, TileSource, batches
from server.storage.tiles import SCALARS, fold
from server.storage.views import View, Window, read_view
from server.storage.wanted import Wanted

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Whose buckets they are."""

    rank: int
    writer_id: int
    """0 for a scalar, which goes on from one writer of a rank to the next."""
    layout: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    window: Window
    width: int
    groups: Mapping[Group, Buckets]


@dataclass(frozen=True, kw_only=True)
class _Query:
    run_id: str
    view: View
    window: Window
    wanted: Wanted
    width: int


class BucketReader:
    def __init__(self, database: Database, cache: ByteLru) -> None:
        self._database = database
        self._tiles = TileSource(cache)
        self._tails = TailSource(cache)

    async def read(
        self,
        run_id: str,
        wanted: Wanted,
        *,
        step_from: int | None,
        step_to: int | None,
        most: int,
        attempt: int | None,
    ) -> Reading | None:
        """At most ``most`` buckets at step_from ≤ step ≤ step_to, by default all steps, which are clamped to those that
        the run has; None where it has none there.

        ``attempt``: None shows of each attempt what no later one replaced. A damaged tile is read from the tiles that
        it was made of. Raises `CorruptDataError` where values themselves are damaged, and `DatabaseError`.
        """
        damaged: set[int] = set()
        while True:
            async with self._database.snapshot() as connection:
                view = await read_view(connection, run_id, attempt)
                window = view.clamp(step_from, step_to)
                if window is None:
                    return None
                query = _Query(
                    run_id=run_id, view=view, window=window, wanted=wanted, width=choose_width(*window, most)
                )
                pieces = await _plan(connection, query, damaged)
                loaded = await self._tiles.load(connection, pieces, wanted)
                tails = await self._tails.load(connection, run_id, view, window, wanted)
            try:
                groups = await asyncio.to_thread(self._assemble, query, pieces, loaded, tails)
            except TileCorruptError as error:
                if any(piece.span.level == 0 for piece in pieces if piece.span.id == error.span_id):
                    raise
                logger.error("%s; read from the level below", error, extra={"action": "tile_corrupt", "run_id": run_id})
                damaged.add(error.span_id)
                continue
            return Reading(window=window, width=query.width, groups=groups)

    def _assemble(
        self, query: _Query, pieces: Sequence[Piece], loaded: Loaded, tails: Sequence[tuple[TailPlace, Tail]]
    ) -> dict[Group, Buckets]:
        """In a thread. Raises `TileCorruptError`."""
        # Within a rank, attempts follow each other, and within an attempt its writers do.
        parts: dict[Group, list[tuple[tuple[int, int, int, int], int, Buckets]]] = {}
        for piece in pieces:
            span = piece.span
            order = (span.attempt, span.writer_id, span.first_seq, piece.window[0])
            for series in query.wanted.series(span.rank):
                own, buckets = self._tiles.take(piece, series, loaded, query.wanted, query.width)
                if len(buckets.numbers):
                    parts.setdefault(_group(span.rank, span.writer_id, *series), []).append((order, own, buckets))
        for place, tail in tails:
            order = (place.attempt, place.writer_id, place.first_seq, place.window[0])
            for series, buckets in take_tail(place, tail, query.wanted, query.width):
                group = _group(place.rank, place.writer_id, *series)
                parts.setdefault(group, []).append((order, query.width, buckets))
        groups = {}
        for group, found in parts.items():
            found.sort(key=lambda part: part[0])
            groups[group] = fold([(own, buckets) for _, own, buckets in found], query.width, query.wanted.fields)
        return {group: buckets for group, buckets in groups.items() if len(buckets.numbers)}


async def _plan(connection: AsyncConnection, query: _Query, damaged: Set[int]) -> list[Piece]:
    """The spans that answer the query; see `storage.pyramid`. ``damaged``: ids of spans that are not to be used."""
    first, last = query.window
    pieces: list[Piece] = []
    places = select(*PLACE, spans.c.parent_id).where(spans.c.first_step <= last, spans.c.last_step >= first)
    roots = await connection.execute(places.where(spans.c.run_id == query.run_id, spans.c.parent_id.is_(None)))
    todo: list[tuple[SpanPlace, Window]] = []
    for root in map(place_of, roots):
        shown = query.view.windows.get((root.rank, root.attempt))
        if shown is not None and query.wanted.series(root.rank):
            todo.append((root, (max(first, shown[0]), min(last, shown[1]))))
    while todo:
        below: dict[int, list[Window]] = {}
        for span, part in todo:
            piece, rest = split(span, part, query.width, is_usable=span.id not in damaged)
            if piece is not None:
                pieces.append(piece)
            if rest:
                below.setdefault(span.id, []).extend(rest)
        todo = []
        for parents in batches(list(below)):
            children = await connection.execute(places.where(spans.c.parent_id.in_(parents)))
            for row in children:
                todo += overlapping([place_of(row)], below[row.parent_id])
    return pieces


def _group(rank: int, writer_id: int, layout: int, name: str) -> Group:
    return Group(rank=rank, writer_id=0 if layout == SCALARS else writer_id, layout=layout, name=name)
