"""Check and repair of stored measurements, for `spikewatch doctor`.

The check decodes every stored measurement and makes sure that each record is stored exactly once. A damaged span above
level 0 is rebuilt from the spans below it. A span of level 0 cannot be rebuilt: its damaged tile is marked as lost and
reads as not measured, while the tiles above keep the minima and maxima of these steps. A damaged segment is replaced by
one with the same number of records without measurements. Damaged histograms are removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row, Table, delete, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.errors import CorruptDataError, HistogramCorruptError, SegmentCorruptError
from server.pyramid.blobs import BlobError, pack, unpack
from server.pyramid.columns import Columns, Payload, encode
from server.pyramid.tiles import SpanHeader, decode_buckets, decode_values, title_of, unpack_steps
from server.schema import histograms, runs, segments, spans, tiles, writers
from server.storage.database import Database
from server.storage.measurements.compaction import Compactor
from server.storage.measurements.histogram import decode_histograms
from server.storage.measurements.spans import HEADER_COLUMNS, SpanStore, to_header, to_stored_tile, verify

BATCH = 64  # rows read at once
HISTOGRAMS = 8  # histograms read at once; each has up to 5 MB


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Damaged item and its repair."""

    run_id: str
    where: str
    """Description of the damaged item, for example "tile 'grad_norm' of span 12 (level 0, steps 256 … 511)"."""
    problem: str
    remedy: str = ""
    """Description of the repair, or an empty string where nothing was repaired."""


class Doctor:
    """Finds damage in stored measurements and repairs it on request."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._store = SpanStore(database)

    async def examine(self, *, repair: bool) -> AsyncIterator[Damage]:
        """Yield all damage, lowest level first. Raises `DatabaseError` if the database itself cannot be read."""
        if self._database.is_sqlite:
            async with self._database.read() as connection:
                for row in await connection.execute(text("PRAGMA quick_check(20)")):
                    if row[0] != "ok":
                        yield Damage(run_id="", where="the database file", problem=str(row[0]))
        async for damage in self._segments(repair):
            yield damage
        async with self._database.read() as connection:
            top = (await connection.execute(select(func.max(spans.c.level)))).scalar_one()
        for level in range(0 if top is None else top + 1):
            async for damage in self._level(level, repair):
                yield damage
        async for damage in self._histograms(repair):
            yield damage
        async for damage in self._sequences():
            yield damage

    async def _segments(self, repair: bool) -> AsyncIterator[Damage]:
        async for row in self._rows(segments, BATCH):
            problem = await asyncio.to_thread(_segment_problem, row)
            if problem is None:
                continue
            if repair:
                payload = encode(_nothing(row.first_step, row.last_step, row.last_seq - row.first_seq + 1))
                async with self._database.write() as connection:
                    await connection.execute(
                        update(segments).where(segments.c.id == row.id).values(payload=payload, checksum=crc32(payload))
                    )
                    await _count_repair(connection, row.run_id)
            yield Damage(
                run_id=row.run_id,
                where=f"segment {row.id} (steps {row.first_step} … {row.last_step})",
                problem=problem,
                remedy="its measurements are lost" if repair else "",
            )

    async def _level(self, level: int, repair: bool) -> AsyncIterator[Damage]:
        last = 0
        while True:
            query = (
                select(*HEADER_COLUMNS, spans.c.run_id, spans.c.steps, spans.c.times)
                .where(spans.c.level == level, spans.c.id > last)
                .order_by(spans.c.id)
                .limit(BATCH)
            )
            async with self._database.read() as connection:
                rows = (await connection.execute(query)).all()
            if not rows:
                return
            last = rows[-1].id
            for row in rows:
                async for damage in self._span(row, repair):
                    yield damage

    async def _span(self, row: Any, repair: bool) -> AsyncIterator[Damage]:
        span = to_header(row)
        async with self._database.read() as connection:
            stored = (await connection.execute(select(tiles).where(tiles.c.span_id == span.id))).all()
        problems = await asyncio.to_thread(_span_problems, span, row.steps, row.times, stored)
        if not problems:
            return
        remedy = ""
        if repair:
            remedy = await (
                self._lose(row.run_id, span, problems) if span.level == 0 else self._rebuild(row.run_id, span)
            )
        what = f"span {span.id} (level {span.level}, steps {span.first_step} … {span.last_step})"
        titles = {(tile.layout, tile.name): title_of((tile.layout, tile.name), tile.names) for tile in stored}
        for (layout, name), problem in problems.items():
            where = f"{name} of {what}" if layout is None else f"tile {titles[layout, name]!r} of {what}"
            yield Damage(run_id=row.run_id, where=where, problem=problem, remedy=remedy)

    async def _lose(self, run_id: str, span: SpanHeader, problems: dict[tuple[int | None, str], str]) -> str:
        async with self._database.write() as connection:
            for layout, name in problems:
                same = tiles.c.span_id == span.id
                if layout is not None:
                    same &= (tiles.c.layout == layout) & (tiles.c.name == name)
                elif name == "times":
                    continue
                await connection.execute(update(tiles).where(same).values(last=None, present=None))
            values: dict[str, bytes] = {}
            nothing = _nothing(span.first_step, span.last_step, span.entries)
            if (None, "steps") in problems:
                values["steps"] = pack(nothing.steps)
            if (None, "times") in problems:
                values["times"] = pack(nothing.times)
            if values:
                await connection.execute(update(spans).where(spans.c.id == span.id).values(**values))
            await _count_repair(connection, run_id)
        return "it is lost over these steps; coarser views keep its minima and maxima"

    async def _rebuild(self, run_id: str, span: SpanHeader) -> str:
        async with self._database.read() as connection:
            query = select(*HEADER_COLUMNS).where(spans.c.parent_id == span.id).order_by(spans.c.first_seq)
            children = [to_header(child) for child in await connection.execute(query)]
        if not children:
            return ""
        try:
            draft = await Compactor(self._store, 1.0).draft_above(children)
        except CorruptDataError:
            return ""
        async with self._database.write() as connection:
            await connection.execute(delete(tiles).where(tiles.c.span_id == span.id))
            await connection.execute(
                update(spans)
                .where(spans.c.id == span.id)
                .values(steps=draft.steps, width=draft.width, entries=draft.entries)
            )
            await self._store.insert_tiles(connection, span.id, draft)
            await _count_repair(connection, run_id)
        return "it was rebuilt from the level below"

    async def _histograms(self, repair: bool) -> AsyncIterator[Damage]:
        async for row in self._rows(histograms, HISTOGRAMS):
            try:
                await asyncio.to_thread(decode_histograms, row.id, row.payload)
            except HistogramCorruptError as error:
                if repair:
                    async with self._database.write() as connection:
                        await connection.execute(delete(histograms).where(histograms.c.id == row.id))
                        await _count_repair(connection, row.run_id)
                yield Damage(
                    run_id=row.run_id,
                    where=f"histogram {row.id} ({row.which} at step {row.step})",
                    problem=error.reason,
                    remedy="it is lost" if repair else "",
                )

    async def _rows(self, table: Table, together: int) -> AsyncIterator[Row[Any]]:
        """Yield all rows of a table by their id, with at most ``together`` of them in memory."""
        last = 0
        while True:
            query = select(table).where(table.c.id > last).order_by(table.c.id).limit(together)
            async with self._database.read() as connection:
                rows = (await connection.execute(query)).all()
            if not rows:
                return
            last = rows[-1].id
            for row in rows:
                yield row

    async def _sequences(self) -> AsyncIterator[Damage]:
        """Yield damage for each record of a writer that is not in exactly one span of level 0 or one segment."""
        async with self._database.read() as connection:
            known = (await connection.execute(select(writers.c.id, writers.c.run_id, writers.c.last_seq))).all()
        for writer in known:
            # One snapshot, because a compaction moves records from one table to the other.
            async with self._database.snapshot() as connection:
                ranges = [
                    (row.first_seq, row.last_seq)
                    for query in (
                        select(segments.c.first_seq, segments.c.last_seq).where(segments.c.writer_id == writer.id),
                        select(spans.c.first_seq, spans.c.last_seq).where(
                            spans.c.writer_id == writer.id, spans.c.level == 0
                        ),
                    )
                    for row in await connection.execute(query)
                ]
            reached = 0
            for first, last in sorted(ranges):
                if first != reached + 1:
                    problem = "are missing" if first > reached + 1 else "are stored twice"
                    low, high = (reached + 1, first - 1) if first > reached + 1 else (first, reached)
                    yield Damage(
                        run_id=writer.run_id, where=f"records {low} … {high} of writer {writer.id}", problem=problem
                    )
                reached = max(reached, last)
            if reached < writer.last_seq:
                yield Damage(
                    run_id=writer.run_id,
                    where=f"records {reached + 1} … {writer.last_seq} of writer {writer.id}",
                    problem="are missing",
                )


async def _count_repair(connection: AsyncConnection, run_id: str) -> None:
    """Count a repair of the run.

    The count is part of the run's version, because earlier answers may no longer hold. It also resumes a compaction
    that had stopped at the damage.
    """
    await connection.execute(update(runs).where(runs.c.id == run_id).values(repairs=runs.c.repairs + 1))


def _segment_problem(row: Any) -> str | None:
    try:
        verify(row.id, row.payload, row.checksum)
        found = len(Payload(row.payload).columns().steps)
    except SegmentCorruptError as error:
        return error.reason
    except ValueError as error:
        return str(error)
    expected = row.last_seq - row.first_seq + 1
    return None if found == expected else f"{found} records instead of {expected}"


def _span_problems(
    span: SpanHeader, steps: bytes, times: bytes | None, stored: Sequence[Any]
) -> dict[tuple[int | None, str], str]:
    """Return the problem of each damaged tile, keyed by (layout, name).

    The span's own blobs have the keys (None, "steps") and (None, "times").
    """
    problems: dict[tuple[int | None, str], str] = {}
    numbers: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    try:
        numbers = unpack_steps(steps)
        if len(numbers) != span.entries:
            raise BlobError(f"{len(numbers)} instead of {span.entries}")
    except BlobError as error:
        return {(None, "steps"): str(error)}
    try:
        if times is not None:
            unpack(times, "<f8")
    except BlobError as error:
        problems[None, "times"] = str(error)
    for row in stored:
        tile = to_stored_tile(row)
        try:
            if tile.blobs is None:
                continue
            if span.level == 0:
                decode_values(tile.blobs, span.entries)
            else:
                decode_buckets(tile.blobs, numbers)
        except BlobError as error:
            problems[row.layout, row.name] = str(error)
    return problems


def _nothing(first_step: int, last_step: int, records: int) -> Columns:
    """Return records without measurements, spread evenly over the steps."""
    steps = first_step + (last_step - first_step) * np.arange(records, dtype=object) // max(records - 1, 1)
    return Columns(steps=steps.astype(np.int64), times=np.full(records, np.nan), scalars={})
