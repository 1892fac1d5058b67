"""Buckets of any series over any range, from tiles and from the segments that no tile holds yet.

One snapshot of the database answers a query, so a compaction under way is seen as a whole or not at all.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from server.errors import TileCorruptError
from server.pyramid.buckets import Buckets, Canvas, choose_width
from server.storage.database import Database
from server.storage.lru import ByteLru
from server.storage.measurements.coverage import Piece
from server.storage.measurements.plan import Query, plan
from server.storage.measurements.tails import Tail, TailPlace, TailSource, drawn
from server.storage.measurements.tile_source import Drawn, Loaded, TileSource
from server.storage.measurements.views import Window, read_view
from server.storage.measurements.wanted import Wanted

logger = logging.getLogger(__name__)

THREADS = min(4, os.cpu_count() or 1)
"""Parts of an answer that are decoded at once: pcodec and numpy let other threads run meanwhile."""
TAIL_SHARE = 8
"""The part of the cache that is for segments. Few are shown at a time, and each is soon a part of a tile: in one cache
with the tiles, those of the past would fill it all, for hours, behind a page that is open."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    window: Window
    width: int
    buckets: Buckets
    """The rows that were asked for; all buckets of the window, empty ones included."""


class BucketReader:
    def __init__(self, database: Database, cache_bytes: int) -> None:
        """``cache_bytes``: for all that is kept."""
        self._database = database
        tails = cache_bytes // TAIL_SHARE
        self._tiles = TileSource(ByteLru(cache_bytes - tails))
        self._tails = TailSource(ByteLru(tails))
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tiles")

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
                query = Query(run_id=run_id, view=view, window=window, wanted=wanted, width=choose_width(*window, most))
                pieces, steps = await plan(connection, query, damaged)
                loaded = await self._tiles.load(connection, pieces, steps, wanted)
                tails = await self._tails.load(connection, run_id, view, window, wanted)
            try:
                buckets = await asyncio.to_thread(self._draw, query, pieces, loaded, tails)
            except TileCorruptError as error:
                if any(piece.span.level == 0 for piece in pieces if piece.span.id == error.span_id):
                    raise
                logger.error("%s; read from the level below", error, extra={"action": "tile_corrupt", "run_id": run_id})
                damaged.add(error.span_id)
                continue
            return Reading(window=window, width=query.width, buckets=buckets)

    def _draw(
        self, query: Query, pieces: Sequence[Piece], loaded: Loaded, tails: Sequence[tuple[TailPlace, Tail]]
    ) -> Buckets:
        """In a thread. Raises `TileCorruptError`."""
        wanted, width = query.wanted, query.width
        first, last = query.window
        numbers = np.arange(first // width, last // width + 1, dtype=np.int64)
        canvas = Canvas(numbers, wanted.rows, wanted.dtype, wanted.fields)
        # Within a rank, attempts follow each other, and within an attempt its writers do. Within these, steps never
        # decrease; the sequence does not tell, as a piece is of a span that may begin before what is taken of it.
        parts: list[tuple[tuple[int, int, int, int], Piece | tuple[TailPlace, Tail]]] = []
        for piece in pieces:
            span = piece.span
            parts.append(((span.attempt, span.writer_id, piece.window[0], span.first_seq), piece))
        for place, tail in tails:
            parts.append(((place.attempt, place.writer_id, place.window[0], place.first_seq), (place, tail)))

        def draw(part: Piece | tuple[TailPlace, Tail]) -> list[Drawn]:
            if isinstance(part, Piece):
                return self._tiles.drawn(part, loaded, wanted, width)
            return drawn(*part, wanted, width)

        ordered = [part for _, part in sorted(parts, key=lambda part: part[0])]
        for start in range(0, len(ordered), THREADS):  # no more at once, as each may be large
            some = ordered[start : start + THREADS]
            is_slow = sum(isinstance(part, Piece) for part in some) > 1
            for found in self._threads.map(draw, some) if is_slow else map(draw, some):
                for buckets, rows in found:
                    canvas.put(buckets, rows)
        return canvas.buckets()
