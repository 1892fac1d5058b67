"""Segments as the detectors read them, in the order of their commits."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import and_, func, select

from server.schema import attempts, runs, segments
from server.storage.database import Database


@dataclass(frozen=True, kw_only=True)
class StoredSegment:
    """Segment as the detectors read it."""

    id: int
    writer_id: int
    attempt: int
    """Attempt that the records belong to."""
    is_late: bool
    """Whether the records are late: they belong to earlier steps of the attempt."""
    committed_at: float
    """Time of the commit, Unix seconds."""
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class UnreadSegments:
    """Segments of a run that its detectors have not read yet."""

    state: str | None
    """State of the run, or None where there is no such run."""
    lowest_rank: int | None
    """Lowest rank that has sent anything, or None where none has."""
    segments: tuple[StoredSegment, ...]


class SegmentStore:
    """Reads segments for the detectors."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def unread(self, run_id: str, rank: int | None, position: int, limit: int) -> UnreadSegments:
        """Return at most ``limit`` segments of ``rank`` whose id is greater than ``position``, in commit order.

        ``rank`` is None for the lowest rank that has sent anything. Raises `DatabaseError`.
        """
        lowest = select(func.min(attempts.c.rank)).where(attempts.c.run_id == run_id).scalar_subquery()
        head = select(runs.c.state, lowest.label("rank")).where(runs.c.id == run_id)
        columns = [segments.c[name] for name in ("id", "writer_id", "committed_at", "payload")]
        attempt = func.coalesce(attempts.c.merged_into, segments.c.attempt).label("attempt")
        is_late = attempts.c.merged_into.is_not(None).label("is_late")
        is_owner = and_(
            attempts.c.run_id == segments.c.run_id,
            attempts.c.rank == segments.c.rank,
            attempts.c.attempt == segments.c.attempt,
        )
        following = (
            select(*columns, attempt, is_late)
            .outerjoin(attempts, is_owner)
            .where(segments.c.run_id == run_id, segments.c.id > position)
        )
        async with self._database.read() as connection:
            # The state is read first: if the run has ended, the next query sees everything that it sent.
            row = (await connection.execute(head)).one_or_none()
            if row is None or row.rank is None:
                return UnreadSegments(state=None if row is None else row.state, lowest_rank=None, segments=())
            own = following.where(segments.c.rank == (row.rank if rank is None else rank))
            rows = await connection.execute(own.order_by(segments.c.id).limit(limit))
            found = tuple(StoredSegment(**item) for item in rows.mappings())
        return UnreadSegments(state=row.state, lowest_rank=row.rank, segments=found)
