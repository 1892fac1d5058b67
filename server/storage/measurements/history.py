"""Every record of a run as it was logged, piece by piece, for exports and later analyses.

Only one piece is in memory at a time. A concurrent compaction does not matter: records are found by their sequence, in
whichever span or segment contains them at that moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.errors import RunDeletedError, SegmentCorruptError, TileCorruptError
from server.log_actions import LogAction
from server.models import DELETING
from server.pyramid.blobs import BlobError, unpack
from server.pyramid.columns import BlockColumns, Columns, Payload
from server.pyramid.tiles import SCALARS, LevelZero, TileKey, columns_of, decode_values, title_of, unpack_steps
from server.schema import attempts, runs, segments, spans, tiles, writers
from server.storage.database import Database
from server.storage.measurements.spans import StoredTile, to_stored_tile, verify

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive records of one writer and attempt. Their steps never decrease."""

    rank: int
    writer_id: int
    attempt: int
    """Attempt that the records belong to."""
    first_seq: int
    columns: Columns
    is_late: bool = False
    """Whether the records are late: they belong to earlier steps of the attempt."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Encoded span or segment that contains the next record."""

    attempt: int
    first_seq: int
    last_seq: int
    span: tuple[int, int, bytes, bytes] | None = None
    """Id, number of entries, steps and times of a span of level 0."""
    tiles: tuple[StoredTile, ...] = ()
    segment: tuple[int, bytes, int | None] | None = None
    """Id, payload and checksum of a segment."""


class HistoryReader:
    """Reads every record of a run."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def pieces(self, run_id: str, *, names: Collection[str] | None = None) -> AsyncGenerator[Piece, None]:
        """Yield every record of the run once, those of replaced attempts included.

        The order is by rank, then by writer in the order of registration, then by sequence. A piece is a span of level
        0 with a few hundred records, or a segment with one batch. ``names`` restricts the scalars and statistics.
        Records that a damaged database has lost are left out and reported in the log. Raises `RunDeletedError` if the
        run is deleted meanwhile, `CorruptDataError` and `DatabaseError`.
        """
        async with self._database.read() as connection:
            query = select(writers.c.id, writers.c.rank, writers.c.last_seq).where(writers.c.run_id == run_id)
            known = (await connection.execute(query.order_by(writers.c.rank, writers.c.id))).all()
            if not known:
                await expect_run(connection, run_id)
            # Read after the sequences: the series of every record up to them exists by now.
            late = await connection.execute(
                select(attempts.c.rank, attempts.c.attempt, attempts.c.merged_into).where(
                    attempts.c.run_id == run_id, attempts.c.merged_into.is_not(None)
                )
            )
            merged_into = {(row.rank, row.attempt): row.merged_into for row in late}
        for writer in known:
            reached = 0
            while reached < writer.last_seq:
                async with self._database.snapshot() as connection:
                    found = await _next(connection, writer.id, reached, names)
                    if found is None or found.first_seq > reached + 1:
                        # A deletion removes records in any order: what is left of them would look like a complete run.
                        await expect_run(connection, run_id)
                        until = writer.last_seq if found is None else found.first_seq - 1
                        logger.error(
                            "records %s … %s of writer %s of run %s are missing; run `spikewatch doctor` for details",
                            reached + 1,
                            until,
                            writer.id,
                            run_id,
                            extra={"action": LogAction.RECORDS_MISSING, "run_id": run_id},
                        )
                if found is None:
                    break
                columns = await asyncio.to_thread(_decode, found, names)
                already_read = reached + 1 - found.first_seq
                # A compaction has merged records that were already read with others into one span.
                if already_read > 0:
                    columns = columns.rows(already_read, len(columns.steps))
                yield Piece(
                    rank=writer.rank,
                    writer_id=writer.id,
                    attempt=merged_into.get((writer.rank, found.attempt), found.attempt),
                    is_late=(writer.rank, found.attempt) in merged_into,
                    first_seq=max(reached + 1, found.first_seq),
                    columns=columns,
                )
                reached = found.last_seq


async def _next(
    connection: AsyncConnection, writer_id: int, reached: int, names: Collection[str] | None
) -> _Found | None:
    """Return the span or segment with the first record after ``reached``. A span may begin before that record."""
    query = (
        select(spans)
        .where(spans.c.writer_id == writer_id, spans.c.level == 0, spans.c.first_seq <= reached + 1)
        .order_by(spans.c.first_seq.desc())
        .limit(1)
    )
    span = (await connection.execute(query)).first()
    if span is not None and span.last_seq > reached:
        tile_rows = select(tiles).where(tiles.c.span_id == span.id)
        if names is not None:
            tile_rows = tile_rows.where(or_(tiles.c.layout == SCALARS, tiles.c.name.in_(sorted(names))))
        stored = tuple(to_stored_tile(row) for row in await connection.execute(tile_rows))
        return _Found(
            attempt=span.attempt,
            first_seq=span.first_seq,
            last_seq=span.last_seq,
            span=(span.id, span.entries, span.steps, span.times),
            tiles=stored,
        )
    query = (
        select(segments)
        .where(segments.c.writer_id == writer_id, segments.c.first_seq > reached)
        .order_by(segments.c.first_seq)
        .limit(1)
    )
    segment = (await connection.execute(query)).first()
    if segment is None:
        return None
    return _Found(
        attempt=segment.attempt,
        first_seq=segment.first_seq,
        last_seq=segment.last_seq,
        segment=(segment.id, segment.payload, segment.checksum),
    )


async def expect_run(connection: AsyncConnection, run_id: str) -> None:
    """Raise `RunDeletedError` if the run is deleted or being deleted."""
    state = (await connection.execute(select(runs.c.state).where(runs.c.id == run_id))).scalar_one_or_none()
    if state in {None, DELETING}:
        raise RunDeletedError(run_id, "there is nothing left to read")


def _decode(found: _Found, names: Collection[str] | None) -> Columns:
    """Decode a span or segment. Runs in a thread."""
    if found.segment is not None:
        number, payload, checksum = found.segment
        verify(number, payload, checksum)
        try:
            columns = Payload(payload).columns()
        except ValueError as error:
            raise SegmentCorruptError(number, str(error)) from error
        return columns if names is None else _only(columns, names)
    assert found.span is not None
    number, entries, steps, times = found.span
    held: dict[TileKey, tuple[Sequence[str] | None, LevelZero]] = {}
    name = "steps"
    try:
        at, when = unpack_steps(steps), unpack(times, "<f8")[0]
        for tile in found.tiles:
            if tile.blobs is not None:
                name = title_of(tile.key, tile.blobs.names)
                held[tile.key] = (tile.blobs.names, decode_values(tile.blobs, entries))
    except BlobError as error:
        raise TileCorruptError(number, name, str(error)) from error
    columns = columns_of(at, when, held)
    return columns if names is None else _only(columns, names)


def _only(columns: Columns, names: Collection[str]) -> Columns:
    blocks = [
        BlockColumns(
            layout=block.layout,
            layers=block.layers,
            rows=block.rows,
            statistics={name: values for name, values in block.statistics.items() if name in names},
        )
        for block in columns.blocks
    ]
    return Columns(
        steps=columns.steps,
        times=columns.times,
        scalars={name: column for name, column in columns.scalars.items() if name in names},
        blocks=tuple(block for block in blocks if block.statistics),
    )
