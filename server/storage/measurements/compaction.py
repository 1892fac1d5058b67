"""Background compaction: segments to tiles, and tiles to tiles of the next level.

Each step is one small transaction (`measurements.spans`) that leaves the database consistent; the process may be killed
between any two of them. A compactor holds no state that it could not rebuild.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from server.errors import CorruptDataError, DatabaseError, SegmentCorruptError, TileCorruptError
from server.log_actions import LogAction
from server.pyramid.blobs import BlobError, pack
from server.pyramid.buckets import Buckets, Canvas, bucket_of, first_step_of, widen
from server.pyramid.columns import Columns, Payload, concatenate
from server.pyramid.tiles import (
    FAN_IN,
    SCALARS,
    SLACK,
    SpanDraft,
    SpanHeader,
    TileBlobs,
    TileKey,
    capacity,
    choose_span_width,
    cut,
    decode_buckets,
    decode_values,
    reduce_values,
    shared_rows,
    tile_of_buckets,
    title_of,
    together,
    unpack_steps,
)
from server.storage.measurements.spans import AttemptSegments, SegmentBytes, SpanStore, StoredTile

logger = logging.getLogger(__name__)


class Compactor:
    """Compacts segments and spans. Use it from a single task."""

    def __init__(
        self,
        store: SpanStore,
        interval: float,
        span_entries: Callable[[int], int] = capacity,
        *,
        is_ours: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Create a compactor.

        ``interval`` is the number of seconds between two searches for work. ``span_entries`` maps the number of layers
        of a run to the number of records that fill a span of level 0. ``is_ours`` returns whether `run` should compact
        now rather than another server; None means always.
        """
        self._store = store
        self._interval = interval
        self._span_entries = span_entries
        self.backlog = 0
        """Number of records in segments that the last round left for later."""
        self._given_up: dict[tuple[int, int], int] = {}
        """Attempts with damage, keyed by (writer, attempt), and the number of repairs of their run at that time.

        Such an attempt is skipped until the run has been repaired again.
        """
        self._is_ours = is_ours

    async def run(self) -> None:
        """Compact until cancelled. Waits while the database is unavailable."""
        caught_up = False
        while True:
            if self._is_ours is not None and not await self._is_ours():
                caught_up = False  # The other server may stop in the middle of a compaction.
                await asyncio.sleep(self._interval)
                continue
            try:
                if not caught_up:
                    await self._catch_up()
                    caught_up = True
                await self.run_once()
            except DatabaseError as error:
                logger.warning("the compaction pauses (%s)", error, extra={"action": LogAction.COMPACTION_WAITS})
            except Exception:  # A run that fails must not end the compaction of all others.
                logger.exception("the compaction failed", extra={"action": LogAction.COMPACTION_FAILED})
            await asyncio.sleep(self._interval)

    async def run_once(self) -> int:
        """Compact everything that is due. Returns the number of spans of level 0 that were written."""
        written = backlog = 0
        for group in await self._store.compactable():
            if self._given_up.get((group.writer_id, group.attempt)) == group.repairs:
                continue
            min_records = self._span_entries(group.layers)
            left = group.records
            try:
                while left >= min_records or (group.is_closed and left > 0):
                    taken, spans = await self._compact(group, min_records)
                    if taken == 0:
                        break
                    left -= taken
                    written += spans
                if group.is_closed and left <= 0:
                    await self.close(group.run_id, group.writer_id, group.attempt)
            except CorruptDataError as error:
                self._given_up[group.writer_id, group.attempt] = group.repairs
                _report(group.run_id, error)
            backlog += left
        self.backlog = backlog
        return written

    async def _catch_up(self) -> None:
        """Build the levels that an interrupted compaction had not built yet."""
        for run_id in await self._store.runs_with_full_levels():
            try:
                await self.build_levels(run_id)
            except CorruptDataError as error:  # The compaction of other runs continues.
                _report(run_id, error)

    async def build_levels(self, run_id: str) -> None:
        """Build a span above every eight spans of one level. Raises `TileCorruptError`."""
        while True:
            due = _full_level(await self._store.roots(run_id))
            if due is None or not await self._build_above(run_id, due):
                return

    async def close(self, run_id: str, writer_id: int, attempt: int) -> None:
        """Build spans above the last spans of an attempt that has ended, so that a query reads fewer of them.

        If the attempt continues after all, its new spans simply have no parent yet. Raises `TileCorruptError`.
        """
        while True:
            roots = await self._store.roots(run_id)
            due = _last_spans([root for root in roots if (root.writer_id, root.attempt) == (writer_id, attempt)])
            if due is None or not await self._build_above(run_id, due):
                return

    async def _compact(self, group: AttemptSegments, min_records: int) -> tuple[int, int]:
        """Return the numbers of records moved and of spans written; (0, 0) if another server was faster."""
        taken = await self._store.oldest_segments(group, min_records)
        if not taken:
            return 0, 0
        drafts = await asyncio.to_thread(build_spans, taken, min_records)
        if not await self._store.replace_segments(group, taken, drafts):
            return 0, 0
        await self.build_levels(group.run_id)
        return sum(segment.last_seq - segment.first_seq + 1 for segment in taken), len(drafts)

    async def _build_above(self, run_id: str, children: Sequence[SpanHeader]) -> bool:
        draft = await self.draft_above(children)
        return await self._store.put_above(run_id, children, draft)

    async def draft_above(self, children: Sequence[SpanHeader]) -> SpanDraft:
        """Build the span above the given spans, without storing it. Raises `TileCorruptError`."""
        ids = [child.id for child in children]
        numbers = {}
        for number, blob in (await self._store.steps_of(ids)).items():
            try:
                numbers[number] = unpack_steps(blob)
            except BlobError as error:
                raise TileCorruptError(number, "steps", str(error)) from error
        starts = np.unique(np.concatenate([first_step_of(numbers[child.id], child.width) for child in children]))
        max_buckets = int(SLACK * sum(child.entries for child in children) / len(children))
        width = choose_span_width(starts, max(child.width for child in children), max_buckets)
        own = np.unique(bucket_of(starts, width))
        found: dict[TileKey, TileBlobs] = {}
        # Scalars are read together. Statistics are large and therefore read one by one.
        keys = await self._store.keys_of(ids)
        for layout, name in dict.fromkeys((layout, None if layout == SCALARS else name) for layout, name in keys):
            stored = await self._store.tiles_of(ids, layout, name)
            found |= await asyncio.to_thread(_build_tiles, children, stored, numbers, own, width)
        return SpanDraft(
            level=max(child.level for child in children) + 1,
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


def _report(run_id: str, error: CorruptDataError) -> None:
    logger.error(
        "the compaction of run %s stops (%s); its data stays readable; run `spikewatch doctor --repair` to continue",
        run_id,
        error,
        extra={"action": LogAction.COMPACTION_CORRUPT, "run_id": run_id},
    )


def build_spans(taken: Sequence[SegmentBytes], min_records: int) -> list[SpanDraft]:
    """Build spans of level 0 with about ``min_records`` records each. Raises `SegmentCorruptError`.

    A span contains consecutive records of its writer, so late records between two segments end a span. Takes long
    enough to belong in a thread.
    """
    runs: list[tuple[int, list[Columns]]] = []
    last_seq: int | None = None
    for segment in taken:
        try:
            columns = Payload(segment.payload).columns()
        except ValueError as error:
            raise SegmentCorruptError(segment.id, str(error)) from error
        if last_seq is None or segment.first_seq != last_seq + 1:
            runs.append((segment.first_seq, []))
        runs[-1][1].append(columns)
        last_seq = segment.last_seq
    return [draft for first_seq, parts in runs for draft in cut(concatenate(parts), first_seq, min_records)]


def _full_level(roots: Sequence[SpanHeader]) -> list[SpanHeader] | None:
    """Return the oldest eight spans of a level of any attempt, lowest level first, or None where no level has eight."""
    groups: dict[tuple[int, int, int], list[SpanHeader]] = {}
    for root in roots:
        groups.setdefault((root.level, root.writer_id, root.attempt), []).append(root)
    for _, group in sorted(groups.items()):
        if len(group) >= FAN_IN:
            return group[:FAN_IN]
    return None


def _last_spans(roots: Sequence[SpanHeader]) -> list[SpanHeader] | None:
    """Return the first spans that share a level and all spans after them, or None where every level has at most one."""
    for level in sorted({root.level for root in roots}):
        positions = [number for number, root in enumerate(roots) if root.level == level]
        if len(positions) > 1:
            return list(roots[positions[0] :])
    return None


def _build_tiles(
    children: Sequence[SpanHeader],
    stored: Sequence[StoredTile],
    numbers: Mapping[int, NDArray[np.int64]],
    own: NDArray[np.int64],
    width: int,
) -> dict[TileKey, TileBlobs]:
    """Build the tiles above those of one statistic, or of all scalars. Runs in a thread. Raises `TileCorruptError`."""
    order = {child.id: number for number, child in enumerate(children)}
    # Lost tiles have no blobs, so the tile above contains nothing for their steps either.
    found = sorted((tile for tile in stored if tile.blobs is not None), key=lambda tile: order[tile.span_id])
    if not found:
        return {}
    parts = [
        (tile.blobs, _widened(children[order[tile.span_id]], tile, numbers[tile.span_id], width))
        for tile in found
        if tile.blobs is not None
    ]
    scalars = {name for blobs, _ in parts for name in blobs.names or ()}
    built: dict[TileKey, TileBlobs] = {}
    for names in together(scalars) if scalars else [None]:
        canvas = Canvas(own, parts[0][0].rows, np.dtype("<f4"))
        if names is not None:
            canvas = Canvas(own, len(names), np.dtype("<f8"))
        for blobs, buckets in parts:
            if names is None:
                canvas.put(buckets)
            else:
                here, there = shared_rows(blobs.names or (), names)
                canvas.put(buckets.of(here), there)
        whole = canvas.buckets().filled()
        if len(whole.numbers):
            built[found[0].key if names is None else (SCALARS, names[0])] = tile_of_buckets(whole, own, names)
    return built


def _widened(span: SpanHeader, tile: StoredTile, numbers: NDArray[np.int64], width: int) -> Buckets:
    assert tile.blobs is not None
    try:
        if span.level == 0:
            return reduce_values(decode_values(tile.blobs, span.entries), numbers, width)
        return widen(decode_buckets(tile.blobs, numbers), width // span.width)
    except BlobError as error:
        raise TileCorruptError(tile.span_id, title_of(tile.key, tile.blobs.names), str(error)) from error
