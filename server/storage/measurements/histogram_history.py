"""Every histogram of a run, writer by writer in the order of its records: what exports are made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from sqlalchemy import and_, literal, select, tuple_

from server.schema import histograms
from server.storage.database import Database
from server.storage.measurements.histogram import Shapes, decode
from server.storage.measurements.history import expect_run
from server.storage.measurements.steps import RunSteps

TOGETHER = 4  # one has up to 5 MB


@dataclass(frozen=True, kw_only=True)
class HistogramPiece:
    """The histograms of one quantity that came with one record."""

    rank: int
    attempt: int
    step: int
    which: str
    layers: tuple[str, ...]
    """Those of the writer's layout, as `shapes` has them."""
    shapes: Shapes


class HistogramHistory:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def walk(self, steps: RunSteps) -> AsyncGenerator[HistogramPiece, None]:
        """Those that were committed when the walk of the steps began, some at a time.

        Raises `RunDeletedError`, `HistogramCorruptError` and `DatabaseError`.
        """
        for writer in steps.writers:
            if not writer.last_histogram:
                continue
            place = (histograms.c.attempt, histograms.c.step, histograms.c.id)
            known = and_(histograms.c.writer_id == writer.writer_id, histograms.c.id <= writer.last_histogram)
            query = select(histograms).where(known).order_by(*place).limit(TOGETHER)
            after = query
            is_over = False
            while not is_over:
                async with self._database.snapshot() as connection:
                    rows = (await connection.execute(after)).all()
                    is_over = len(rows) < TOGETHER
                    if is_over:
                        await expect_run(connection, steps.run_id)  # else a deletion has taken some away before
                if rows:
                    reached = [literal(value) for value in (rows[-1].attempt, rows[-1].step, rows[-1].id)]
                    after = query.where(tuple_(*place) > tuple_(*reached))
                for row in rows:
                    yield HistogramPiece(
                        rank=writer.rank,
                        attempt=row.attempt,
                        step=row.step,
                        which=row.which,
                        layers=writer.layouts[row.layout].layers,
                        shapes=await asyncio.to_thread(decode, row.id, row.payload),
                    )
