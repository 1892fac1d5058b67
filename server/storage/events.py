"""Events of a run: stage changes, spikes, learning-rate jumps, non-finite values, rollbacks, thinned statistics."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from client_sdk import answers
from server.models import EventKind
from server.schema import events, outliers
from server.storage.database import Database

PAGE = 256
_WITH_OUTLIER = (EventKind.LOSS_OUTLIER, EventKind.SPIKE, EventKind.BAD_BATCH)
"""Kinds of events about which other runs may say something."""


class EventStore:
    """Reads the table of events. `storage.detector_states` and the commit write it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_run(
        self, run_id: str, *, step_from: int | None = None, step_to: int | None = None, limit: int = 10_000
    ) -> list[answers.Event]:
        """Return the last ``limit`` events of a run, in the order in which they happened."""
        query = select(events).where(events.c.run_id == run_id).order_by(events.c.id.desc()).limit(limit)
        if step_from is not None:
            query = query.where(events.c.step >= step_from)
        if step_to is not None:
            query = query.where(events.c.step <= step_to)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
            details = await _details(connection, run_id, rows)
        return [answers.Event.of(row.step, row.kind, row.attempt, details[row.id]) for row in reversed(rows)]

    async def walk(self, run_id: str) -> AsyncGenerator[answers.ArchivedEvent, None]:
        """Yield every event of a run, in the order in which they happened."""
        last_id = 0
        while True:
            query = select(events).where(events.c.run_id == run_id, events.c.id > last_id)
            async with self._database.read() as connection:
                rows = (await connection.execute(query.order_by(events.c.id).limit(PAGE))).all()
                details = await _details(connection, run_id, rows)
            for row in rows:
                yield answers.ArchivedEvent.of(
                    row.step, row.kind, row.attempt, details[row.id], rank=row.rank, created_at=row.created_at
                )
            if len(rows) < PAGE:
                return
            last_id = rows[-1].id


async def _details(
    connection: AsyncConnection, run_id: str, rows: Sequence[Row[Any]]
) -> Mapping[int, Mapping[str, Any]]:
    """Return the details of events by id, with what other runs say about their outliers now."""
    steps = {row.id: row.detail.get("outlier_step", row.step) for row in rows if row.kind in _WITH_OUTLIER}
    if not steps:
        return {row.id: row.detail for row in rows}
    query = select(outliers.c.attempt, outliers.c.step, outliers.c.coincidence).where(
        outliers.c.run_id == run_id,
        outliers.c.step.between(min(steps.values()), max(steps.values())),
        outliers.c.coincidence.is_not(None),
    )
    known = {(row.attempt, row.step): row.coincidence for row in await connection.execute(query)}
    details = {}
    for row in rows:
        evidence = known.get((row.attempt, steps[row.id])) if row.id in steps else None
        details[row.id] = row.detail if evidence is None else {**row.detail, "coincidence": evidence}
    return details
