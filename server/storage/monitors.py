"""How far the detectors of each run have read, saved as one with what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite

from client_sdk.protocol import Alert
from server.models import Event, Progress, RunState
from server.schema import alerts, events, monitors, runs
from server.storage.alerts import alert_json
from server.storage.database import Database, insert_ignore
from server.storage.outbox import enqueue, levels_before


@dataclass(frozen=True, kw_only=True)
class MonitorState:
    """Everything that the follower of a run needs to go on."""

    rank: int
    position: int
    """Id of the last segment that was read."""
    state: bytes
    revision: int = 0
    """Counts the saves, so that of two followers only one saves."""
    due_at: float | None = None
    """Unix time at which silence becomes worth an alert; None: never."""


class MonitorStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self, run_id: str) -> MonitorState | None:
        async with self._database.read() as connection:
            row = (await connection.execute(select(monitors).where(monitors.c.run_id == run_id))).first()
            if row is None:
                return None
            return MonitorState(
                rank=row.rank, position=row.position, state=row.state, revision=row.revision, due_at=row.due_at
            )

    async def due(self, now: float, limit: int) -> list[str]:
        """Runs, at most ``limit``, that are not over and whose silence may be worth an alert by ``now``."""
        query = (
            select(monitors.c.run_id)
            .join(runs, runs.c.id == monitors.c.run_id)
            .where(monitors.c.due_at <= now, runs.c.state.in_([RunState.RUNNING, RunState.STALE]))
            .order_by(monitors.c.due_at)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def save(
        self,
        run_id: str,
        *,
        before: int | None,
        after: MonitorState,
        progress: Progress,
        changed: Sequence[Alert],
        happened: Sequence[Event],
        now: float,
    ) -> list[dict[str, Any]] | None:
        """Replace the state of the revision ``before`` (None: no state yet) with all that came of it since.

        Returns the changed alerts as the API shows them, or None, with
        nothing stored, when somebody else has saved meanwhile: a follower on another server that is ahead.
        """
        async with self._database.write() as connection:
            row = {
                "rank": after.rank,
                "position": after.position,
                "state": after.state,
                "saved_at": now,
                "revision": after.revision,
                "due_at": after.due_at,
            }
            if before is None:
                moved = await connection.execute(insert_ignore(connection, monitors).values(run_id=run_id, **row))
            else:
                moved = await connection.execute(
                    update(monitors).where(monitors.c.run_id == run_id, monitors.c.revision == before).values(**row)
                )
            if moved.rowcount != 1:
                return None
            await connection.execute(
                update(runs)
                .where(runs.c.id == run_id)
                .values(
                    step_rate=progress.step_rate,
                    loss=progress.loss,
                    lr=progress.lr,
                    stage=progress.stage,
                    stability_ratio=progress.stability_ratio,
                    sparkline=progress.sparkline,
                )
            )
            if happened:
                await connection.execute(
                    events.insert(),
                    [
                        {
                            "run_id": run_id,
                            "rank": after.rank,
                            "attempt": event.attempt,
                            "step": event.step,
                            "kind": event.kind,
                            "detail": dict(event.detail),
                            "created_at": now,
                        }
                        for event in happened
                    ],
                )
            known = await levels_before(connection, [alert.id for alert in changed]) if changed else {}
            shown = []
            dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
            for alert in changed:
                held = {
                    "level": alert.level,
                    "state": alert.state,
                    "closed_at": alert.closed_at,
                    "body": msgspec.to_builtins(alert),
                }
                insert = dialect.insert(alerts).values(
                    id=alert.id,
                    run_id=run_id,
                    kind=alert.kind,
                    attempt=alert.attempt,
                    step=alert.step,
                    opened_at=alert.opened_at,
                    **held,
                )
                stored = await connection.execute(
                    insert.on_conflict_do_update(index_elements=[alerts.c.id], set_=held).returning(alerts)
                )
                shown.append(alert_json(stored.one()))
            await enqueue(connection, run_id, known, changed, now)
            return shown
