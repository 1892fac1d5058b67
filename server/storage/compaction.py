"""Turns segments into tiles, and tiles into those of the next level, in the background.

Each step of it is one small transaction (`storage.spans`) that leaves the database whole; between two of them anything
may happen, a kill included. A compactor keeps nothing that it could not find again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from server.errors import DatabaseError, SegmentCorruptError, TileCorruptError
from server.storage.blobs import BlobError, pack
from server.storage.buckets import Buckets, bucket_of, first_step_of
from server.storage.columns import Payload, concatenate
from server.storage.spans import SegmentBytes, SpanPlace, SpanStore, StoredTile, Stream
from server.storage.tiles import (
    FAN_IN,
    SCALARS,
    SLACK,
    Series,
    SpanDraft,
    TileBlobs,
    capacity,
    choose_span_width,
    cut,
    decode_buckets,
    decode_values,
    fold,
    reduce_values,
    tile_of_buckets,
    unpack_steps,
)

logger = logging.getLogger(__name__)

SCALARS_AT_ONCE = 64


class Compactor:
    """Used from one task."""

    def __init__(self, store: SpanStore, interval: float, span_entries: Callable[[int], int] = capacity) -> None:
        """``interval``: seconds between two looks for something to do. ``span_entries``: layers of a run to the records
        that fill a span of level 0."""
        self._store = store
        self._interval = interval
        self._span_entries = span_entries
        self.backlog = 0
        """Records in segments that the last look left for later."""
        self._given_up: set[tuple[int, int]] = set()
        """(writer, attempt) of streams with damage, left alone until the next start."""

    async def run(self) -> None:
        """Until cancelled. Outages of the database are waited for."""
        caught_up = False
        while True:
            try:
                if not caught_up:
                    for run_id in await self._store.runs_with_full_levels():
                        await self.raise_levels(run_id)
                    caught_up = True
                await self.run_once()
            except DatabaseError as error:
                logger.warning("the compaction waits (%s)", error, extra={"action": "compaction_waits"})
            except Exception:  # one bad run must not end the compaction of all
                logger.exception("the compaction failed", extra={"action": "compaction_failed"})
            await asyncio.sleep(self._interval)

    async def run_once(self) -> int:
        """Compact all that is due. Returns how many spans of level 0 were written."""
        written = backlog = 0
        for stream in await self._store.streams():
            if (stream.writer_id, stream.attempt) in self._given_up:
                continue
            most = self._span_entries(stream.layers)
            left = stream.records
            while left >= most or (stream.is_closed and left > 0):
                try:
                    taken, spans = await self._compact(stream, most)
                except (SegmentCorruptError, TileCorruptError) as error:
                    self._give_up(stream, error)
                    break
                if taken == 0:
                    break
                left -= taken
                written += spans
            backlog += left
        self.backlog = backlog
        return written

    async def raise_levels(self, run_id: str) -> None:
        """Put a span above every eight of one level. Raises `TileCorruptError`."""
        while True:
            due = _full_level(await self._store.roots(run_id))
            if due is None or not await self._raise(run_id, due):
                return

    async def _compact(self, stream: Stream, most: int) -> tuple[int, int]:
        """(records, spans) that were moved; (0, 0) when somebody else was faster."""
        taken = await self._store.oldest_segments(stream, most)
        if not taken:
            return 0, 0
        drafts = await asyncio.to_thread(make_spans, taken, most)
        if not await self._store.replace_segments(stream, taken, drafts):
            return 0, 0
        await self.raise_levels(stream.run_id)
        return taken[-1].last_seq - taken[0].first_seq + 1, len(drafts)

    async def _raise(self, run_id: str, children: Sequence[SpanPlace]) -> bool:
        draft = await self.draft_above(children)
        return await self._store.put_above(run_id, children, draft)

    async def draft_above(self, children: Sequence[SpanPlace]) -> SpanDraft:
        """The span that stands above these. Raises `TileCorruptError`."""
        ids = [child.id for child in children]
        numbers = {}
        for number, blob in (await self._store.steps_of(ids)).items():
            try:
                numbers[number] = unpack_steps(blob)
            except BlobError as error:
                raise TileCorruptError(number, "steps", str(error)) from error
        starts = np.unique(np.concatenate([first_step_of(numbers[child.id], child.width) for child in children]))
        most = int(SLACK * sum(child.entries for child in children) / len(children))
        width = choose_span_width(starts, max(child.width for child in children), most)
        own = np.unique(bucket_of(starts, width))
        found: dict[Series, TileBlobs] = {}
        for group in _groups(await self._store.series_of(ids)):
            stored = await self._store.tiles_of(ids, group)
            found |= await asyncio.to_thread(_raise_tiles, children, stored, numbers, own, width)
        return SpanDraft(
            level=children[0].level + 1,
            width=width,
            first_seq=children[0].first_seq,
            last_seq=children[-1].last_seq,
            first_step=children[0].first_step,
            last_step=children[-1].last_step,
            entries=len(own),
            steps=pack(own),
            times=None,
            tiles=found,
        )

    def _give_up(self, stream: Stream, error: Exception) -> None:
        self._given_up.add((stream.writer_id, stream.attempt))
        logger.error(
            "the compaction of run %s stops (%s); its data stays readable; `spikewatch doctor` says more",
            stream.run_id,
            error,
            extra={"action": "compaction_corrupt", "run_id": stream.run_id},
        )


def make_spans(taken: Sequence[SegmentBytes], most: int) -> list[SpanDraft]:
    """Spans of level 0 of about ``most`` records. Takes a while; for a thread. Raises `SegmentCorruptError`."""
    parts = []
    for segment in taken:
        try:
            parts.append(Payload(segment.payload).columns())
        except ValueError as error:
            raise SegmentCorruptError(segment.id, str(error)) from error
    return list(cut(concatenate(parts), taken[0].first_seq, most))


def _full_level(roots: Sequence[SpanPlace]) -> list[SpanPlace] | None:
    """The oldest eight spans of some level of some stream, the lowest level first."""
    groups: dict[tuple[int, int, int], list[SpanPlace]] = {}
    for root in roots:
        groups.setdefault((root.level, root.writer_id, root.attempt), []).append(root)
    for _, group in sorted(groups.items()):
        if len(group) >= FAN_IN:
            return group[:FAN_IN]
    return None


def _groups(series: Sequence[Series]) -> list[list[Series]]:
    """Scalars together, statistics, which are large, one by one."""
    scalars = [item for item in series if item[0] == SCALARS]
    some = [scalars[start : start + SCALARS_AT_ONCE] for start in range(0, len(scalars), SCALARS_AT_ONCE)]
    return some + [[item] for item in series if item[0] != SCALARS]


def _raise_tiles(
    children: Sequence[SpanPlace],
    stored: Sequence[StoredTile],
    numbers: Mapping[int, NDArray[np.int64]],
    own: NDArray[np.int64],
    width: int,
) -> dict[Series, TileBlobs]:
    """In a thread. Raises `TileCorruptError`."""
    places = {child.id: child for child in children}
    parts: dict[Series, dict[int, Buckets]] = {}
    for tile in stored:
        if tile.blobs is None:
            continue  # lost: what stands above it says nothing of these steps either
        place, steps = places[tile.span_id], numbers[tile.span_id]
        is_scalar = tile.series[0] == SCALARS
        try:
            if place.level == 0:
                values = decode_values(tile.blobs, place.entries, is_scalar=is_scalar)
                buckets = reduce_values(values, steps, width, is_scalar=is_scalar)
            else:
                buckets = fold([(place.width, decode_buckets(tile.blobs, steps, is_scalar=is_scalar))], width)
        except BlobError as error:
            raise TileCorruptError(tile.span_id, tile.series[1], str(error)) from error
        parts.setdefault(tile.series, {})[tile.span_id] = buckets
    made = {}
    for series, found in parts.items():
        whole = fold([(width, found[child.id]) for child in children if child.id in found], width)
        if len(whole.numbers):
            made[series] = tile_of_buckets(whole, own)
    return made
