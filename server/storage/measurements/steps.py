"""Every step of a run as it was logged, together with its layouts, for exports and the read API.

A walk sees exactly the records that were committed when it began, so that the columns known at that time are complete.
It goes rank by rank and writer by writer, each in the order of its sequence; the attempts of a rank therefore follow
each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import func, select

from client_sdk.protocol import Layout
from server.pyramid.columns import BlockColumns, Columns
from server.schema import histograms, scalars, writers
from server.storage.database import Database
from server.storage.layouts import LayoutStore
from server.storage.measurements.history import HistoryReader


@dataclass(frozen=True, kw_only=True)
class StepChunk:
    """Consecutive records of one writer and attempt."""

    rank: int
    attempt: int
    layouts: Mapping[int, Layout]
    """Layouts of the writer, keyed by layout number."""
    columns: Columns
    is_late: bool = False
    """Whether the records are late: they belong to earlier steps of the attempt."""


@dataclass(frozen=True, kw_only=True)
class WriterSteps:
    """Writer and the number of records that it had committed when the walk began."""

    writer_id: int
    rank: int
    last_seq: int
    layouts: Mapping[int, Layout]
    last_histogram: int = 0
    """Id of the writer's last histogram when the walk began, or 0 where it had none."""


@dataclass(frozen=True, kw_only=True)
class RunSteps:
    """Records and columns that a walk returns."""

    run_id: str
    scalars: tuple[str, ...]
    """Names of all scalars that were logged, sorted."""
    writers: tuple[WriterSteps, ...]

    @property
    def records(self) -> int:
        """Number of records of all writers."""
        return sum(writer.last_seq for writer in self.writers)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Columns to read; None means all of them."""

    scalars: Collection[str] | None = None
    statistics: Collection[str] | None = None

    def names(self) -> Collection[str] | None:
        """Return all names that may have to be read, or None where everything has to be."""
        if self.scalars is None or self.statistics is None:
            return None
        return {*self.scalars, *self.statistics}

    def of(self, columns: Columns) -> Columns:
        """Return only the selected columns. A scalar and a statistic may have the same name."""
        found = columns.scalars
        if self.scalars is not None:
            found = {name: column for name, column in found.items() if name in self.scalars}
        blocks = columns.blocks
        if self.statistics is not None:
            chosen = self.statistics
            kept = [{name: item for name, item in block.statistics.items() if name in chosen} for block in blocks]
            blocks = tuple(
                BlockColumns(layout=block.layout, layers=block.layers, rows=block.rows, statistics=statistics)
                for block, statistics in zip(blocks, kept, strict=True)
                if statistics
            )
        return Columns(steps=columns.steps, times=columns.times, scalars=found, blocks=blocks)


class StepReader:
    """Reads every step of a run."""

    def __init__(self, database: Database, layouts: LayoutStore) -> None:
        self._database = database
        self._layouts = layouts
        self._history = HistoryReader(database)

    async def begin(self, run_id: str) -> RunSteps:
        """Fix the records and columns that a walk will see."""
        shapes = select(func.max(histograms.c.id)).where(histograms.c.writer_id == writers.c.id).scalar_subquery()
        async with self._database.snapshot() as connection:
            rows = (
                await connection.execute(
                    select(writers.c.id, writers.c.rank, writers.c.last_seq, shapes.label("last_histogram"))
                    .where(writers.c.run_id == run_id)
                    .order_by(writers.c.rank, writers.c.id)
                )
            ).all()
            names = await connection.execute(select(scalars.c.name).where(scalars.c.run_id == run_id).distinct())
            known = tuple(sorted(names.scalars()))
        # Read after the sequences, because a layout is stored before the first record that uses it.
        layouts: dict[int, dict[int, Layout]] = {}
        for item in await self._layouts.of_run(run_id):
            layouts.setdefault(item.writer_id, {})[item.layout.id] = item.layout
        return RunSteps(
            run_id=run_id,
            scalars=known,
            writers=tuple(
                WriterSteps(
                    writer_id=row.id,
                    rank=row.rank,
                    last_seq=row.last_seq,
                    layouts=layouts.get(row.id, {}),
                    last_histogram=row.last_histogram or 0,
                )
                for row in rows
            ),
        )

    async def walk(self, steps: RunSteps, selection: Selection | None = None) -> AsyncGenerator[StepChunk, None]:
        """Yield every record, in chunks. Raises `RunDeletedError`, `CorruptDataError` and `DatabaseError`."""
        chosen = Selection() if selection is None else selection
        known = {writer.writer_id: writer for writer in steps.writers}
        async with contextlib.aclosing(self._history.pieces(steps.run_id, names=chosen.names())) as pieces:
            async for piece in pieces:
                writer = known.get(piece.writer_id)
                count = 0 if writer is None else writer.last_seq + 1 - piece.first_seq
                if writer is None or count <= 0:
                    continue  # These records came after the walk began.
                columns = piece.columns if count >= len(piece.columns.steps) else piece.columns.rows(0, count)
                yield StepChunk(
                    rank=piece.rank,
                    attempt=piece.attempt,
                    layouts=writer.layouts,
                    columns=chosen.of(columns),
                    is_late=piece.is_late,
                )
