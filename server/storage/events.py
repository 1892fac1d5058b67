"""Events of a run: stage changes, spikes, learning-rate jumps, non-finite values, rollbacks, thinned statistics."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from sqlalchemy import select

from client_sdk import answers
from server.schema import events
from server.storage.database import Database

PAGE = 256


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
        return [answers.Event.of(row.step, row.kind, row.attempt, row.detail) for row in reversed(rows)]

    async def walk(self, run_id: str) -> AsyncGenerator[answers.ArchivedEvent, None]:
        """Yield every event of a run, in the order in which they happened."""
        last_id = 0
        while True:
            query = select(events).where(events.c.run_id == run_id, events.c.id > last_id)
            async with self._database.read() as connection:
                rows = (await connection.execute(query.order_by(events.c.id).limit(PAGE))).all()
            for row in rows:
                yield answers.ArchivedEvent.of(
                    row.step, row.kind, row.attempt, row.detail, rank=row.rank, created_at=row.created_at
                )
            if len(rows) < PAGE:
                return
            last_id = rows[-1].id
