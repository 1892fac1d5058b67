"""Events of a run: stage changes, spikes, learning-rate jumps, non-finite values, rollbacks, thinned statistics."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from server.models import Event
from server.schema import events
from server.storage.database import Database


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


def event_json(event: Event) -> dict[str, Any]:
    """``{step, kind, attempt, …detail}``; the detail never hides the first three."""
    return {**event.detail, "step": event.step, "kind": event.kind, "attempt": event.attempt}
