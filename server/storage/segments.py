"""Segments: committing what a writer sent exactly once, and reading it back in order.

A commit checks the writer's last sequence, inserts the segments and moves the sequence in one transaction. Attempts are
given out here, for each (run, rank): a segment that begins before the last step of its rank begins a new attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.errors import RunDeletedError, SequenceMovedError, WriterTakenError
from server.models import Event, RunState
from server.schema import attempts, events, histograms, runs, scalars, segments, writers
from server.storage.database import Database, insert_ignore
from server.storage.runs import Registration, is_running


@dataclass(frozen=True, kw_only=True)
class HistogramDraft:
    """The histograms of one quantity at one step, encoded by `storage.histogram`."""

    step: int
    layout: int
    which: str
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class SegmentDraft:
    """A segment before it has an id and an attempt. Its steps never decrease."""

    first_seq: int
    last_seq: int
    first_step: int
    last_step: int
    payload: bytes
    names: frozenset[str]
    histograms: tuple[HistogramDraft, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What became durable."""

    last_seq: int
    first_step: int
    last_step: int
    attempt: int
    events: tuple[Event, ...]


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

    @property
    def is_contended(self) -> bool:
        """Commits wait for each other."""
        return self._database.is_contended

    async def commit(
        self, writer: Registration, expected_seq: int, drafts: Sequence[SegmentDraft], now: float
    ) -> Commit:
        """Store consecutive drafts that begin at ``expected_seq`` + 1.

        Raises `WriterTakenError` when a later connection is this writer, `SequenceMovedError` when the writer's last
        sequence is another one, `RunDeletedError`, and `DatabaseError`; nothing is stored then.
        """
        cost = sum(len(draft.payload) for draft in drafts)
        async with self._database.write(writer.run_id, cost) as connection:
            found = await connection.execute(
                select(writers.c.last_seq, writers.c.epoch, writers.c.state)
                .where(writers.c.id == writer.writer_id)
                .with_for_update()
            )
            row = found.one_or_none()
            if row is None:
                raise RunDeletedError(writer.run_id)
            if row.epoch != writer.epoch:
                raise WriterTakenError
            if row.last_seq != expected_seq:
                raise SequenceMovedError(row.last_seq)
            alive: dict[str, Any] = {}
            if await is_running(connection, writer.run_id, writer.writer_id, writer.rank, row.state):
                alive = {"state": RunState.RUNNING, "last_seen_at": now}
            attempt, rollbacks = await self._insert_segments(connection, writer, drafts, now)
            await self._insert_names(connection, writer, drafts)
            last = drafts[-1]
            await connection.execute(
                update(writers).where(writers.c.id == writer.writer_id).values(last_seq=last.last_seq, **alive)
            )
            shown = await connection.execute(
                update(runs)
                .where(runs.c.id == writer.run_id, runs.c.state != RunState.DELETING)
                .values(last_step=last.last_step, attempt=attempt, **alive)
            )
            if shown.rowcount != 1:
                raise RunDeletedError(writer.run_id)
        return Commit(
            last_seq=last.last_seq,
            first_step=min(draft.first_step for draft in drafts),
            last_step=last.last_step,
            attempt=attempt,
            events=tuple(rollbacks),
        )

    async def _insert_segments(
        self, connection: AsyncConnection, writer: Registration, drafts: Sequence[SegmentDraft], now: float
    ) -> tuple[int, list[Event]]:
        current = await _current_attempt(connection, writer)
        rollbacks: list[Event] = []
        rows: list[dict[str, Any]] = []
        shapes: list[dict[str, Any]] = []
        for draft in drafts:
            if current is None or draft.first_step < current.last_step:
                attempt = 0 if current is None else current.attempt + 1
                if current is not None:
                    await _move_attempt(connection, writer, current)
                    rollbacks.append(
                        Event(
                            step=draft.first_step,
                            kind="rollback",
                            attempt=attempt,
                            detail={"from_step": current.last_step},
                        )
                    )
                current = _Attempt(attempt=attempt, last_step=draft.last_step)
                await connection.execute(
                    attempts.insert().values(
                        run_id=writer.run_id,
                        rank=writer.rank,
                        attempt=attempt,
                        first_step=draft.first_step,
                        last_step=draft.last_step,
                        started_at=now,
                    )
                )
            current = _Attempt(attempt=current.attempt, last_step=draft.last_step)
            origin = {"run_id": writer.run_id, "writer_id": writer.writer_id, "attempt": current.attempt}
            rows.append(
                {
                    **origin,
                    "rank": writer.rank,
                    "first_seq": draft.first_seq,
                    "last_seq": draft.last_seq,
                    "first_step": draft.first_step,
                    "last_step": draft.last_step,
                    "committed_at": now,
                    "payload": draft.payload,
                    "checksum": crc32(draft.payload),
                }
            )
            shapes += [
                {**origin, "layout": item.layout, "which": item.which, "step": item.step, "payload": item.payload}
                for item in draft.histograms
            ]
        assert current is not None
        await _move_attempt(connection, writer, current)
        await connection.execute(segments.insert(), rows)
        if shapes:
            await connection.execute(histograms.insert(), shapes)
        if rollbacks:
            await connection.execute(
                events.insert(),
                [
                    {
                        "run_id": writer.run_id,
                        "rank": writer.rank,
                        "attempt": event.attempt,
                        "step": event.step,
                        "kind": event.kind,
                        "detail": dict(event.detail),
                        "created_at": now,
                    }
                    for event in rollbacks
                ],
            )
        return current.attempt, rollbacks

    async def _insert_names(
        self, connection: AsyncConnection, writer: Registration, drafts: Sequence[SegmentDraft]
    ) -> None:
        names = frozenset[str]().union(*(draft.names for draft in drafts))
        known = await connection.execute(
            select(scalars.c.name).where(scalars.c.run_id == writer.run_id, scalars.c.rank == writer.rank)
        )
        missing = names.difference(row.name for row in known)
        if missing:
            await connection.execute(
                insert_ignore(connection, scalars),
                [{"run_id": writer.run_id, "rank": writer.rank, "name": name} for name in sorted(missing)],
            )

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


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    attempt: int
    last_step: int


async def _move_attempt(connection: AsyncConnection, writer: Registration, reached: _Attempt) -> None:
    await connection.execute(
        update(attempts)
        .where(
            attempts.c.run_id == writer.run_id,
            attempts.c.rank == writer.rank,
            attempts.c.attempt == reached.attempt,
        )
        .values(last_step=reached.last_step)
    )


async def _current_attempt(connection: AsyncConnection, writer: Registration) -> _Attempt | None:
    query = (
        select(attempts.c.attempt, attempts.c.last_step)
        .where(attempts.c.run_id == writer.run_id, attempts.c.rank == writer.rank)
        .order_by(attempts.c.attempt.desc())
        .limit(1)
        .with_for_update()
    )
    row = (await connection.execute(query)).first()
    return None if row is None else _Attempt(attempt=row.attempt, last_step=row.last_step)
