"""Buckets of any rows over any range of steps, read from tiles and from the segments that no tile contains yet.

One snapshot of the database answers a query, so that a concurrent compaction is seen completely or not at all.
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
from server.log_actions import LogAction
from server.pyramid.buckets import Buckets, Canvas, StepRange, choose_width
from server.pyramid.coverage import Piece
from server.pyramid.row_selection import RowSelection
from server.storage.database import Database
from server.storage.measurements.attempt_view import read_view
from server.storage.measurements.byte_cache import ByteCache
from server.storage.measurements.open_segments import DecodedSegment, OpenSegment, OpenSegmentSource, segment_buckets
from server.storage.measurements.span_search import BucketQuery, find_spans
from server.storage.measurements.tile_source import LoadedTiles, RowBuckets, TileSource

logger = logging.getLogger(__name__)

THREADS = min(4, os.cpu_count() or 1)
"""Number of parts of a result that are decoded at once; pcodec and NumPy release the interpreter lock meanwhile."""
SEGMENT_SHARE = 8
"""Divisor of the cache size: one eighth is for segments.

Queries need few segments at a time, and each soon becomes part of a tile. In one cache with the tiles, the segments of
the past would displace the tiles for hours while a page stays open.
"""


@dataclass(frozen=True, kw_only=True)
class BucketResult:
    """Result of a query for buckets."""

    step_range: StepRange
    """Range of steps that the result covers."""
    width: int
    """Steps in each bucket, a power of two."""
    buckets: Buckets
    """Requested rows in all buckets of the range, empty buckets included."""


class BucketReader:
    """Reads buckets, and caches the decoded tiles and segments."""

    def __init__(self, database: Database, cache_bytes: int) -> None:
        """Create a reader with empty caches that take at most ``cache_bytes`` bytes together."""
        self._database = database
        for_segments = cache_bytes // SEGMENT_SHARE
        self._tiles = TileSource(ByteCache(cache_bytes - for_segments))
        self._segments = OpenSegmentSource(ByteCache(for_segments))
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tiles")

    async def read(
        self,
        run_id: str,
        selection: RowSelection,
        *,
        step_from: int | None,
        step_to: int | None,
        max_buckets: int,
        attempt: int | None,
        with_late: bool = True,
    ) -> BucketResult | None:
        """Return at most ``max_buckets`` buckets of the steps from ``step_from`` to ``step_to``, both included.

        The range is clamped to the steps that the run has; None on either side means no bound. Returns None where the
        run has no steps in the range. ``attempt`` selects one attempt; None shows what no later attempt replaced.
        Late records are part of their attempt unless ``with_late`` is False.

        A damaged tile is replaced by the tiles that it was built from. Raises `CorruptDataError` where values
        themselves are damaged, and `DatabaseError`.
        """
        damaged: set[int] = set()
        while True:
            async with self._database.snapshot() as connection:
                view = await read_view(connection, run_id, attempt, with_late=with_late)
                step_range = view.clamp(step_from, step_to)
                if step_range is None:
                    return None
                query = BucketQuery(
                    run_id=run_id,
                    view=view,
                    step_range=step_range,
                    selection=selection,
                    width=choose_width(*step_range, max_buckets),
                )
                pieces, steps = await find_spans(connection, query, damaged)
                loaded = await self._tiles.load(connection, pieces, steps, selection)
                segments = await self._segments.load(connection, run_id, view, step_range, selection)
            try:
                buckets = await asyncio.to_thread(self._draw, query, pieces, loaded, segments)
            except TileCorruptError as error:
                if any(piece.span.level == 0 for piece in pieces if piece.span.id == error.span_id):
                    raise
                logger.error(
                    "%s; read from the level below", error, extra={"action": LogAction.TILE_CORRUPT, "run_id": run_id}
                )
                damaged.add(error.span_id)
                continue
            return BucketResult(step_range=step_range, width=query.width, buckets=buckets)

    def _draw(
        self,
        query: BucketQuery,
        pieces: Sequence[Piece],
        loaded: LoadedTiles,
        segments: Sequence[tuple[OpenSegment, DecodedSegment]],
    ) -> Buckets:
        """Put the buckets of all parts together. Runs in a thread. Raises `TileCorruptError`."""
        selection, width = query.selection, query.width
        first, last = query.step_range
        numbers = np.arange(first // width, last // width + 1, dtype=np.int64)
        canvas = Canvas(numbers, selection.rows, selection.dtype, selection.fields)
        # Attempts of a rank follow each other, and so do the writers of an attempt. Within a writer, steps never
        # decrease, except in late records, which are placed by their steps. Sorting by sequence alone would be wrong: a
        # span may begin before the part that is used of it.
        parts: list[tuple[tuple[int, int, int, int], Piece | tuple[OpenSegment, DecodedSegment]]] = []
        for piece in pieces:
            span = piece.span
            attempt = query.view.attempt_of(span.rank, span.attempt)
            parts.append(((attempt, span.writer_id, piece.step_range[0], span.first_seq), piece))
        for segment, decoded in segments:
            attempt = query.view.attempt_of(segment.rank, segment.attempt)
            key = (attempt, segment.writer_id, segment.step_range[0], segment.first_seq)
            parts.append((key, (segment, decoded)))

        def draw(part: Piece | tuple[OpenSegment, DecodedSegment]) -> list[RowBuckets]:
            if isinstance(part, Piece):
                return self._tiles.piece_buckets(part, loaded, selection, width)
            return segment_buckets(*part, selection, width)

        ordered = [part for _, part in sorted(parts, key=lambda part: part[0])]
        for start in range(0, len(ordered), THREADS):  # not all at once, because each part may be large
            some = ordered[start : start + THREADS]
            is_slow = sum(isinstance(part, Piece) for part in some) > 1
            for found in self._threads.map(draw, some) if is_slow else map(draw, some):
                for buckets, rows in found:
                    canvas.put(buckets, rows)
        return canvas.buckets()
