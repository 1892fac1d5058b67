"""Segments as they are read back, in the order of their commits."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from server.schema import attempts, runs, segments
from server.storage.database import Database


@dataclass(frozen=True, kw_only=True)
class StoredSegment:
    """A segment as the detectors read it."""

    id: int
    writer_id: int
    attempt: int
    committed_at: float
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class Unread:
    """A run as its detectors find it."""

    state: str | None
    """None where there is no such run."""
    lowest_rank: int | None
    """That has sent anything."""
    segments: tuple[StoredSegment, ...]


class SegmentStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def unread(self, run_id: str, rank: int | None, position: int, limit: int) -> Unread:
        """What the detectors of a run have to know of it, in one transaction.

        The next segments, in the order of their commits, are those of ``rank`` (None: of the lowest that has sent
        anything) whose id is greater than ``position``.
        """
        lowest = select(func.min(attempts.c.rank)).where(attempts.c.run_id == run_id).scalar_subquery()
        head = select(runs.c.state, lowest.label("rank")).where(runs.c.id == run_id)
        columns = [segments.c[name] for name in ("id", "writer_id", "attempt", "committed_at", "payload")]
        following = select(*columns).where(segments.c.run_id == run_id, segments.c.id > position)
        async with self._database.read() as connection:
            # The state first: of a run that has ended, everything that it sent is then seen.
            row = (await connection.execute(head)).one_or_none()
            if row is None or row.rank is None:
                return Unread(state=None if row is None else row.state, lowest_rank=None, segments=())
            own = following.where(segments.c.rank == (row.rank if rank is None else rank))
            rows = await connection.execute(own.order_by(segments.c.id).limit(limit))
            found = tuple(StoredSegment(**item) for item in rows.mappings())
        return Unread(state=row.state, lowest_rank=row.rank, segments=found)
