"""Every step of a run as it was logged, in order and in bounded memory: what exports and the read API are made of.

A walk sees the records that were committed when it began and no others. It goes rank by rank, writer by writer, each in
the order of its sequence; the attempts of a rank therefore follow each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import func, select

from server.errors import SegmentCorruptError
from server.models import Layout
from server.schema import scalars, segments, writers
from server.storage.columns import BlockColumns, Columns, Payload
from server.storage.database import Database
from server.storage.layouts import LayoutStore

PAGE = 256  # segments looked up at once
FETCH_BYTES = 4 * 1024 * 1024  # compressed payloads held at once; a larger one is held alone


@dataclass(frozen=True, kw_only=True)
class StepChunk:
    """Consecutive records of one writer and attempt."""

    rank: int
    attempt: int
    layouts: Mapping[int, Layout]
    """Those of the writer, by number."""
    columns: Columns


@dataclass(frozen=True, kw_only=True)
class WriterSteps:
    """A writer and how many records it had committed when the walk began."""

    writer_id: int
    rank: int
    last_seq: int
    layouts: Mapping[int, Layout]


@dataclass(frozen=True, kw_only=True)
class RunSteps:
    """What a walk will give."""

    run_id: str
    scalars: tuple[str, ...]
    """Every name that was logged, sorted."""
    writers: tuple[WriterSteps, ...]

    @property
    def records(self) -> int:
        return sum(writer.last_seq for writer in self.writers)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which columns are read; None: all of them."""

    scalars: Collection[str] | None = None
    statistics: Collection[str] | None = None


class StepReader:
    def __init__(self, database: Database, layouts: LayoutStore) -> None:
        self._database = database
        self._layouts = layouts

    async def begin(self, run_id: str) -> RunSteps:
        """Fix what a walk will see."""
        async with self._database.read() as connection:
            rows = (
                await connection.execute(
                    select(writers.c.id, writers.c.rank, writers.c.last_seq)
                    .where(writers.c.run_id == run_id)
                    .order_by(writers.c.rank, writers.c.id)
                )
            ).all()
            names = await connection.execute(select(scalars.c.name).where(scalars.c.run_id == run_id).distinct())
            known = tuple(sorted(names.scalars()))
        # Read after the sequences: a layout is stored before the first record that uses it.
        layouts: dict[int, dict[int, Layout]] = {}
        for item in await self._layouts.of_run(run_id):
            layouts.setdefault(item.writer_id, {})[item.layout.id] = item.layout
        return RunSteps(
            run_id=run_id,
            scalars=known,
            writers=tuple(
                WriterSteps(writer_id=row.id, rank=row.rank, last_seq=row.last_seq, layouts=layouts.get(row.id, {}))
                for row in rows
            ),
        )

    async def walk(self, steps: RunSteps, selection: Selection | None = None) -> AsyncIterator[StepChunk]:
        """Every record, in chunks. Raises `SegmentCorruptError` and `DatabaseError`."""
        chosen = Selection() if selection is None else selection
        for writer in steps.writers:
            async for attempt, columns in self._walk_writer(steps.run_id, writer, chosen):
                yield StepChunk(rank=writer.rank, attempt=attempt, layouts=writer.layouts, columns=columns)

    async def _walk_writer(
        self, run_id: str, writer: WriterSteps, selection: Selection
    ) -> AsyncIterator[tuple[int, Columns]]:
        done = 0
        while done < writer.last_seq:
            query = (
                select(segments.c.id, segments.c.attempt, segments.c.last_seq, func.length(segments.c.payload))
                .where(
                    segments.c.run_id == run_id,
                    segments.c.writer_id == writer.writer_id,
                    segments.c.first_seq > done,
                    segments.c.last_seq <= writer.last_seq,
                )
                .order_by(segments.c.first_seq)
                .limit(PAGE)
            )
            async with self._database.read() as connection:
                page = [tuple(row) for row in await connection.execute(query)]
            if not page:
                return  # the run was deleted meanwhile
            while page:
                taken, size = [page.pop(0)], 0
                while page and (size := size + page[0][3]) <= FETCH_BYTES:
                    taken.append(page.pop(0))
                payloads = await self._payloads([number for number, *_ in taken])
                for number, attempt, last_seq, _ in taken:
                    data = payloads.get(number)
                    if data is None:
                        return
                    yield attempt, await asyncio.to_thread(_decode, number, data, selection)
                    done = last_seq

    async def _payloads(self, ids: list[int]) -> dict[int, bytes]:
        query = select(segments.c.id, segments.c.payload).where(segments.c.id.in_(ids))
        async with self._database.read() as connection:
            return {row.id: row.payload for row in await connection.execute(query)}


def _decode(number: int, data: bytes, selection: Selection) -> Columns:
    try:
        payload = Payload(data)
        columns = payload.columns() if selection.statistics is None else _decode_chosen(payload, selection.statistics)
    except ValueError as error:
        raise SegmentCorruptError(number, str(error)) from error
    if selection.scalars is None:
        return columns
    kept = {name: column for name, column in columns.scalars.items() if name in selection.scalars}
    return Columns(steps=columns.steps, times=columns.times, scalars=kept, blocks=columns.blocks)


def _decode_chosen(payload: Payload, statistics: Collection[str]) -> Columns:
    """As `Payload.columns`, without decompressing the statistics that are not asked for."""
    blocks: dict[int, BlockColumns] = {}
    for name in statistics:
        for layout, rows, values in payload.statistic(name):
            known = {} if layout not in blocks else blocks[layout].statistics
            blocks[layout] = BlockColumns(
                layout=layout, layers=values.shape[0], rows=rows, statistics={**known, name: values}
            )
    return Columns(
        steps=payload.steps(), times=payload.times(), scalars=payload.scalars(), blocks=tuple(blocks.values())
    )
