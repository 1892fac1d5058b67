"""Spans and tiles in the database: finding what is due for compaction, and replacing segments and spans.

Several servers may compact the same writer at once. Nothing is locked while a span is built. The transaction that
stores it names the rows that it replaces, and changes nothing if one of them is gone. Each step is therefore in exactly
one segment or in exactly one span of level 0, whichever process dies at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from zlib import crc32

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from client_sdk.vocabulary import RunState
from server.errors import SegmentCorruptError
from server.pyramid.tiles import FAN_IN, SpanDraft, SpanHeader, TileBlobs, TileKey
from server.schema import attempts, monitors, runs, segments, spans, tiles, writers
from server.storage.database import Database, insert_ignore
from server.storage.id_list import padded

MAX_BYTES = 32 * 2**20
"""Approximate maximum size in bytes of the payloads that are compacted at once; a single larger payload is allowed."""
FETCH = 32


@dataclass(frozen=True, kw_only=True)
class AttemptSegments:
    """Segments of one writer and attempt that the detectors have read."""

    run_id: str
    writer_id: int
    rank: int
    attempt: int
    records: int
    layers: int
    """Number of layers of the run; no tile of the writer has more rows."""
    is_closed: bool
    """Whether no more segments are expected, because the writer has ended or has begun a later attempt."""
    position: int | None
    """Id of the last segment that may be compacted, or None where all may."""
    repairs: int = 0
    """Number of repairs of the run so far."""


@dataclass(frozen=True, kw_only=True)
class _Owner:
    """Run, writer, rank and attempt that a span belongs to."""

    run_id: str
    writer_id: int
    rank: int
    attempt: int


@dataclass(frozen=True, kw_only=True)
class SegmentBytes:
    """Segment as the compaction reads it."""

    id: int
    first_seq: int
    last_seq: int
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class StoredTile:
    """Tile as it is stored."""

    span_id: int
    key: TileKey
    blobs: TileBlobs | None
    """Encoded tile, or None where it was found damaged and is lost."""


HEADER_COLUMNS = tuple(spans.c[name] for name in SpanHeader.__dataclass_fields__)


class SpanStore:
    """Reads and replaces spans and tiles."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def compactable(self) -> list[AttemptSegments]:
        """Return the segments that may be compacted, grouped by attempt: those that the run's detectors have read."""
        is_read = or_(
            segments.c.rank > monitors.c.rank,
            and_(segments.c.rank == monitors.c.rank, segments.c.id <= monitors.c.position),
        )
        key = (segments.c.run_id, segments.c.rank, segments.c.writer_id, segments.c.attempt)
        found = (
            select(*key, func.sum(segments.c.last_seq - segments.c.first_seq + 1).label("records"))
            .join(monitors, monitors.c.run_id == segments.c.run_id)
            .where(is_read)
            .group_by(*key)
            .subquery()
        )
        is_owner = and_(
            attempts.c.run_id == found.c.run_id,
            attempts.c.rank == found.c.rank,
            attempts.c.attempt == found.c.attempt,
        )
        query = (
            select(
                *found.c,
                runs.c.layer_count,
                runs.c.repairs,
                writers.c.state,
                monitors.c.rank.label("read_rank"),
                monitors.c.position,
                func.coalesce(attempts.c.merged_into, found.c.attempt).label("training_attempt"),
            )
            .join(runs, runs.c.id == found.c.run_id)
            .join(writers, writers.c.id == found.c.writer_id)
            .outerjoin(attempts, is_owner)
            .join(monitors, monitors.c.run_id == found.c.run_id)
            .order_by(found.c.writer_id, found.c.attempt)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        newest: dict[int, int] = {}
        for row in rows:
            newest[row.writer_id] = max(row.training_attempt, newest.get(row.writer_id, 0))
        return [
            AttemptSegments(
                run_id=row.run_id,
                writer_id=row.writer_id,
                rank=row.rank,
                attempt=row.attempt,
                records=int(row.records),
                layers=row.layer_count,
                is_closed=row.state != RunState.RUNNING or row.training_attempt < newest[row.writer_id],
                position=row.position if row.rank == row.read_rank else None,
                repairs=row.repairs,
            )
            for row in rows
        ]

    async def oldest_segments(self, group: AttemptSegments, records: int) -> list[SegmentBytes]:
        """Return the oldest segments of the attempt that hold ``records`` records or slightly more.

        Returns fewer where the payloads are very large. Raises `SegmentCorruptError`.
        """
        query = (
            select(segments.c.id, segments.c.first_seq, segments.c.last_seq, segments.c.payload, segments.c.checksum)
            .where(
                segments.c.run_id == group.run_id,
                segments.c.rank == group.rank,
                segments.c.writer_id == group.writer_id,
                segments.c.attempt == group.attempt,
            )
            .order_by(segments.c.first_seq)
            .limit(FETCH)
        )
        if group.position is not None:
            query = query.where(segments.c.id <= group.position)
        found: list[SegmentBytes] = []
        held = size = 0
        while True:
            after = found[-1].first_seq if found else -1
            async with self._database.read() as connection:
                rows = (await connection.execute(query.where(segments.c.first_seq > after))).all()
            for row in rows:
                verify(row.id, row.payload, row.checksum)
                found.append(
                    SegmentBytes(id=row.id, first_seq=row.first_seq, last_seq=row.last_seq, payload=row.payload)
                )
                held += row.last_seq - row.first_seq + 1
                size += len(row.payload)
                if held >= records or size >= MAX_BYTES:
                    return found
            if len(rows) < FETCH:
                return found

    async def replace_segments(
        self, group: AttemptSegments, taken: Sequence[SegmentBytes], drafts: Sequence[SpanDraft]
    ) -> bool:
        """Replace segments by spans of level 0. Returns False and changes nothing if another server has done so."""
        ids = [segment.id for segment in taken]
        owner = _Owner(run_id=group.run_id, writer_id=group.writer_id, rank=group.rank, attempt=group.attempt)
        cost = sum(len(segment.payload) for segment in taken)
        try:
            async with self._database.write("compaction", cost) as connection:
                for draft in drafts:
                    if await self._insert(connection, owner, draft) is None:
                        raise _ReplacedElsewhereError
                gone = await connection.execute(delete(segments).where(segments.c.id.in_(padded(ids))))
                if gone.rowcount != len(ids):
                    raise _ReplacedElsewhereError
        except (_ReplacedElsewhereError, IntegrityError):  # An IntegrityError means that the run was deleted.
            return False
        return True

    async def roots(self, run_id: str) -> list[SpanHeader]:
        """Return the spans of a run that have no parent, in the order of each writer's sequence."""
        query = (
            select(*HEADER_COLUMNS)
            .where(spans.c.run_id == run_id, spans.c.parent_id.is_(None))
            .order_by(spans.c.first_seq)
        )
        async with self._database.read() as connection:
            return [to_header(row) for row in await connection.execute(query)]

    async def runs_with_full_levels(self) -> list[str]:
        """Return the runs whose compaction was interrupted before it had built the upper levels."""
        query = (
            select(spans.c.run_id)
            .where(spans.c.parent_id.is_(None))
            .group_by(spans.c.run_id, spans.c.writer_id, spans.c.attempt, spans.c.level)
            .having(func.count() >= FAN_IN)
            .distinct()
        )
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def steps_of(self, span_ids: Sequence[int]) -> dict[int, bytes]:
        """Return the encoded steps of spans, keyed by span id."""
        query = select(spans.c.id, spans.c.steps).where(spans.c.id.in_(span_ids))
        async with self._database.read() as connection:
            return {row.id: row.steps for row in await connection.execute(query)}

    async def keys_of(self, span_ids: Sequence[int]) -> list[TileKey]:
        """Return the keys of the tiles that any of the spans has, sorted."""
        query = select(tiles.c.layout, tiles.c.name).where(tiles.c.span_id.in_(span_ids)).distinct()
        async with self._database.read() as connection:
            return sorted((row.layout, row.name) for row in await connection.execute(query))

    async def tiles_of(self, span_ids: Sequence[int], layout: int, statistic: str | None) -> list[StoredTile]:
        """Return the tiles of one statistic of a layout, or those of all scalars where ``statistic`` is None."""
        query = select(tiles).where(tiles.c.span_id.in_(span_ids), tiles.c.layout == layout)
        if statistic is not None:
            query = query.where(tiles.c.name == statistic)
        async with self._database.read() as connection:
            return [to_stored_tile(row) for row in await connection.execute(query)]

    async def put_above(self, run_id: str, children: Sequence[SpanHeader], draft: SpanDraft) -> bool:
        """Store a span above its children. Returns False and changes nothing if another server has done so."""
        ids = [child.id for child in children]
        first = children[0]
        owner = _Owner(run_id=run_id, writer_id=first.writer_id, rank=first.rank, attempt=first.attempt)
        try:
            async with self._database.write() as connection:
                number = await self._insert(connection, owner, draft)
                if number is None:
                    raise _ReplacedElsewhereError
                moved = await connection.execute(
                    update(spans).where(spans.c.id.in_(ids), spans.c.parent_id.is_(None)).values(parent_id=number)
                )
                if moved.rowcount != len(ids):
                    raise _ReplacedElsewhereError
        except (_ReplacedElsewhereError, IntegrityError):
            return False
        return True

    async def _insert(self, connection: AsyncConnection, owner: _Owner, draft: SpanDraft) -> int | None:
        inserted = await connection.execute(
            insert_ignore(connection, spans)
            .values(
                **asdict(owner),
                level=draft.level,
                width=draft.width,
                first_seq=draft.first_seq,
                last_seq=draft.last_seq,
                first_step=draft.first_step,
                last_step=draft.last_step,
                entries=draft.entries,
                steps=draft.steps,
                times=draft.times,
            )
            .returning(spans.c.id)
        )
        number: int | None = inserted.scalar_one_or_none()
        if number is None:
            return None
        await self.insert_tiles(connection, number, draft)
        return number

    @staticmethod
    async def insert_tiles(connection: AsyncConnection, span_id: int, draft: SpanDraft) -> None:
        """Store the tiles of a span."""
        if draft.tiles:
            await connection.execute(
                tiles.insert(),
                [
                    {
                        "span_id": span_id,
                        "layout": layout,
                        "name": name,
                        "rows": tile.rows,
                        "names": None if tile.names is None else list(tile.names),
                        "present": tile.present,
                        "least": tile.least,
                        "greatest": tile.greatest,
                        "last": tile.last,
                        "nonfinite": tile.nonfinite,
                    }
                    for (layout, name), tile in draft.tiles.items()
                ],
            )


class _ReplacedElsewhereError(Exception):
    """Raised inside a transaction to roll it back."""


def verify(segment_id: int, payload: bytes, checksum: int | None) -> None:
    """Raise `SegmentCorruptError` if the checksum does not match. Segments of early versions have no checksum."""
    if checksum is not None and crc32(payload) != checksum:
        raise SegmentCorruptError(segment_id, "the checksum does not match")


def to_header(row: Any) -> SpanHeader:
    """Return the header of a span from a database row."""
    return SpanHeader(**{name: getattr(row, name) for name in SpanHeader.__dataclass_fields__})


def to_stored_tile(row: Any) -> StoredTile:
    """Return a tile from a database row."""
    blobs = None
    if row.last is not None:
        blobs = TileBlobs(
            rows=row.rows,
            names=None if row.names is None else tuple(row.names),
            present=row.present,
            least=row.least,
            greatest=row.greatest,
            last=row.last,
            nonfinite=row.nonfinite,
        )
    return StoredTile(span_id=row.span_id, key=(row.layout, row.name), blobs=blobs)
