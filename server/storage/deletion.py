"""Deletion of runs: a run is first hidden, then removed piece by piece, and finally its space is returned.

A run that is being deleted has the state `models.DELETING` until nothing of it is left. Every step is a small
transaction that any server may repeat, so an interrupted deletion is simply resumed.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Table, delete, select, text, update

from client_sdk.vocabulary import RunState
from server.models import DELETING
from server.schema import alerts, events, histograms, outliers, runs, segments, spans, tiles, writers
from server.storage.database import Database

VACUUM_PAGES = 2_000  # pages returned in one transaction
_LARGE: Sequence[tuple[Table, int]] = (
    (segments, 64),
    (spans, 16),
    (histograms, 64),
    (events, 256),
    (alerts, 256),
    (outliers, 256),
)
"""Tables in which a long run has many rows, and the number of rows removed in one transaction.

The tiles of a span are removed with it, and all other rows with the run itself.
"""


class DeletionStore:
    """Deletes runs step by step."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def mark(self, run_id: str) -> str | None:
        """Hide a run permanently. Returns its project, or None if there is no such run."""
        async with self._database.write() as connection:
            marked = update(runs).where(runs.c.id == run_id).values(state=DELETING).returning(runs.c.project)
            project: str | None = (await connection.execute(marked)).scalar_one_or_none()
            return project

    async def marked(self) -> list[str]:
        """Return the runs that are marked and may not be removed completely."""
        async with self._database.read() as connection:
            found = await connection.execute(select(runs.c.id).where(runs.c.state == DELETING))
            return list(found.scalars())

    async def expired(self, before: float) -> list[str]:
        """Return the runs that have ended or are stale, and were not heard of since ``before``."""
        query = select(runs.c.id).where(
            runs.c.state.in_([RunState.FINISHED, RunState.CRASHED, RunState.STALE]), runs.c.last_seen_at < before
        )
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def purge_some(self, run_id: str) -> bool:
        """Remove part of a marked run. Returns False when nothing is left of it."""
        for table, max_rows in _LARGE:
            ids = select(table.c.id).where(table.c.run_id == run_id).limit(max_rows)
            async with self._database.write() as connection:
                gone = await connection.execute(delete(table).where(table.c.id.in_(ids)))
                if gone.rowcount > 0:
                    return True
        async with self._database.write() as connection:
            # The order in which a commit locks the rows, so that the two never wait for each other.
            await connection.execute(delete(writers).where(writers.c.run_id == run_id))
            await connection.execute(delete(runs).where(runs.c.id == run_id, runs.c.state == DELETING))
        return False

    async def vacuum(self) -> None:
        """Let Postgres reuse the space of deleted rows, and shorten table files that end with such space.

        Autovacuum would do so only after a fifth of a table is gone, and new rows would extend the file until then.
        Readers and writers continue meanwhile.
        """
        if self._database.is_sqlite:
            return
        async with self._database.bare() as connection:
            await connection.execute(text(f"VACUUM {', '.join([*(table.name for table, _ in _LARGE), tiles.name])}"))

    async def shrink_some(self) -> bool:
        """Shrink a SQLite file by some of its unused pages. Returns False when none are left."""
        if not self._database.is_sqlite:
            return False
        async with self._database.write() as connection:
            before = (await connection.execute(text("PRAGMA freelist_count"))).scalar_one()
            if not before:
                return False
            # SQLite frees one page for each fetched row, but SQLAlchemy regards the statement as one without rows.
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            cursor = await driver.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
            await cursor.fetchall()
            await cursor.close()
            after = (await connection.execute(text("PRAGMA freelist_count"))).scalar_one()
        return bool(0 < after < before)
