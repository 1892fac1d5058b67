"""Every histogram of a run, writer by writer in the order of its records, as exports read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from sqlalchemy import and_, literal, select, tuple_

from server.pyramid.histograms import LayerHistograms
from server.schema import histograms
from server.storage.database import Database
from server.storage.measurements.histogram import decode_histograms
from server.storage.measurements.history import expect_run
from server.storage.measurements.steps import RunSteps

ROWS_PER_QUERY = 4  # a row has up to 5 MB


@dataclass(frozen=True, kw_only=True)
class HistogramPiece:
    """Histograms of one quantity that came with one record."""

    rank: int
    attempt: int
    step: int
    which: str
    layers: tuple[str, ...]
    """Names of the layers of the writer's layout, in the order of the rows of ``shapes``."""
    shapes: LayerHistograms


class HistogramHistory:
    """Reads all histograms of a run."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def walk(self, steps: RunSteps) -> AsyncGenerator[HistogramPiece, None]:
        """Yield the histograms that were committed when the walk of ``steps`` began, reading a few rows at a time.

        Raises `RunDeletedError`, `HistogramCorruptError` and `DatabaseError`.
        """
        for writer in steps.writers:
            if not writer.last_histogram:
                continue
            order = (histograms.c.attempt, histograms.c.step, histograms.c.id)
            known = and_(histograms.c.writer_id == writer.writer_id, histograms.c.id <= writer.last_histogram)
            query = select(histograms).where(known).order_by(*order).limit(ROWS_PER_QUERY)
            after = query
            is_over = False
            while not is_over:
                async with self._database.snapshot() as connection:
                    rows = (await connection.execute(after)).all()
                    is_over = len(rows) < ROWS_PER_QUERY
                    if is_over:
                        # A deletion may have removed rows: what is left of them must not look like all of them.
                        await expect_run(connection, steps.run_id)
                if rows:
                    reached = [literal(value) for value in (rows[-1].attempt, rows[-1].step, rows[-1].id)]
                    after = query.where(tuple_(*order) > tuple_(*reached))
                for row in rows:
                    yield HistogramPiece(
                        rank=writer.rank,
                        attempt=row.attempt,
                        step=row.step,
                        which=row.which,
                        layers=writer.layouts[row.layout].layers,
                        shapes=await asyncio.to_thread(decode_histograms, row.id, row.payload),
                    )
