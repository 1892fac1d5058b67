"""Events of a run: stage changes, spikes, learning-rate jumps, non-finite values, rollbacks, thinned statistics."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from sqlalchemy import select

from server.models import Event
from server.schema import events
from server.storage.database import Database

PAGE = 256


class EventStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_run(
        self, run_id: str, *, step_from: int | None = None, step_to: int | None = None, limit: int = 10_000
    ) -> list[dict[str, Any]]:
        """The last ``limit`` events, in the order in which they happened, as the API shows them."""
        query = select(events).where(events.c.run_id == run_id).order_by(events.c.id.desc()).limit(limit)
        if step_from is not None:
            query = query.where(events.c.step >= step_from)
        if step_to is not None:
            query = query.where(events.c.step <= step_to)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [
            event_json(Event(step=row.step, kind=row.kind, attempt=row.attempt, detail=row.detail))
            for row in reversed(rows)
        ]

    async def walk(self, run_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """Every event with its rank and when it was noted (``created_at``), in the order in which they happened."""
        reached = 0
        while True:
            query = select(events).where(events.c.run_id == run_id, events.c.id > reached)
            async with self._database.read() as connection:
                rows = (await connection.execute(query.order_by(events.c.id).limit(PAGE))).all()
            for row in rows:
                event = Event(step=row.step, kind=row.kind, attempt=row.attempt, detail=row.detail)
                yield {**event_json(event), "rank": row.rank, "created_at": row.created_at}
            if len(rows) < PAGE:
                return
            reached = rows[-1].id


def event_json(event: Event) -> dict[str, Any]:
    """``{step, kind, attempt, …detail}``; the detail never hides the first three."""
    return {**event.detail, "step": event.step, "kind": event.kind, "attempt": event.attempt}
