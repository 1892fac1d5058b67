"""Commits: storing the batches of several runs exactly once, in one transaction.

A commit checks the writer's epoch and last sequence, inserts the segments and advances the sequence in one transaction,
so that a resend changes nothing. Attempts are assigned here, for each (run, rank): a segment that begins before the
last step of its rank begins a new attempt, unless its records are late. Late records belong to earlier steps of the
present attempt; they are stored in series of their own, in each of which the steps ascend.

One commit takes as many statements as a hundred. Rows are locked in a fixed order, writers before runs and each by id,
and the lock of a run covers all of its attempts. A request that must be refused, because its writer was taken over or
its run deleted, is left out of the transaction and does not affect the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from client_sdk.vocabulary import EventKind, RunState
from server.errors import RunDeletedError, SequenceMovedError, ServerError, TrainingMovedError, WriterTakenError
from server.models import DELETING, Event
from server.pyramid.drafts import SegmentDraft
from server.schema import attempts, events, histograms, runs, scalars, segments, writers
from server.storage.audits import store_audits
from server.storage.database import LOCK_TIMEOUT, Database, insert_ignore
from server.storage.id_list import padded
from server.storage.runs import Registration, is_running

RunRank = tuple[str, int]
"""Run and one of its ranks."""

MAX_LATE_SERIES = 64
"""Number of series of late records that an attempt may have; a late record that fits none begins a new attempt."""

_later = attempts.alias("later")
_is_last = attempts.c.attempt == (
    select(func.max(_later.c.attempt))
    .where(_later.c.run_id == attempts.c.run_id, _later.c.rank == attempts.c.rank)
    .scalar_subquery()
)
_last_segment = (
    select(func.max(segments.c.id))
    .where(segments.c.run_id == attempts.c.run_id, segments.c.rank == attempts.c.rank)
    .scalar_subquery()
)
# FOR NO KEY UPDATE: rows that refer to these may be inserted meanwhile, because foreign keys take FOR KEY SHARE.
LOCK_WRITERS = (
    select(writers.c.id, writers.c.last_seq, writers.c.epoch, writers.c.state)
    .where(writers.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(writers.c.id)
    .with_for_update(key_share=True)
)
LOCK_RUNS = (
    select(runs.c.id)
    .where(runs.c.id.in_(bindparam("ids", expanding=True)), runs.c.state != DELETING)
    .order_by(runs.c.id)
    .with_for_update(key_share=True)
)
LAST_ATTEMPTS = select(
    attempts.c.run_id,
    attempts.c.rank,
    attempts.c.attempt,
    attempts.c.last_step,
    func.coalesce(_last_segment, 0).label("last_segment"),
).where(
    # Two lists may match more rows than needed, but SQLite uses no index for a list of pairs.
    attempts.c.run_id.in_(bindparam("run_ids", expanding=True)),
    attempts.c.rank.in_(bindparam("ranks", expanding=True)),
    _is_last,
)
LATE_SERIES = (
    select(attempts.c.run_id, attempts.c.rank, attempts.c.attempt, attempts.c.last_step, attempts.c.merged_into)
    .where(
        attempts.c.run_id.in_(bindparam("run_ids", expanding=True)),
        attempts.c.rank.in_(bindparam("ranks", expanding=True)),
        attempts.c.attempt < 0,
    )
    .order_by(attempts.c.attempt.desc())
)
_INSERT_SEGMENTS = segments.insert().returning(segments.c.id, segments.c.writer_id, segments.c.first_seq)
_WRITER = writers.c.id == bindparam("of_writer")
_RUN = runs.c.id == bindparam("of_run")
_ALIVE = {"state": RunState.RUNNING, "last_seen_at": bindparam("now")}
_MOVE_WRITER = update(writers).where(_WRITER).values(last_seq=bindparam("to_seq"))
_MOVE_RUN = update(runs).where(_RUN).values(last_step=bindparam("to_step"), attempt=bindparam("to_attempt"))
# Statements keyed by whether the writer is running; a late writer whose rank another writer has taken over is not.
_MOVE_WRITERS = {True: _MOVE_WRITER.values(**_ALIVE), False: _MOVE_WRITER}
_MOVE_RUNS = {True: _MOVE_RUN.values(**_ALIVE), False: _MOVE_RUN}
_MOVE_ATTEMPTS = (
    update(attempts)
    .where(
        attempts.c.run_id == bindparam("of_run"),
        attempts.c.rank == bindparam("of_rank"),
        attempts.c.attempt == bindparam("of_attempt"),
    )
    .values(last_step=bindparam("to_step"))
)


@dataclass(frozen=True, kw_only=True)
class TrainingPosition:
    """Newest attempt of a rank and the last step that its training has reached."""

    attempt: int
    last_step: int


NOT_BEGUN = TrainingPosition(attempt=-1, last_step=-1)
"""Position of a rank that has not sent any record, or of which nothing is known."""


@dataclass(frozen=True, kw_only=True)
class CommitRequest:
    """Consecutive drafts of one writer, at least one, beginning at ``expected_seq`` + 1."""

    writer: Registration
    expected_seq: int
    drafts: Sequence[SegmentDraft]
    now: float
    """Time of the commit, Unix seconds."""
    known_names: frozenset[str] = frozenset()
    """Names of scalars that are already stored as logged by this rank."""
    position: TrainingPosition | None = None
    """Position of the rank's training for which late records were told apart; None to store the drafts in any case."""

    @property
    def run_rank(self) -> RunRank:
        """Run and rank of the writer."""
        return self.writer.run_id, self.writer.rank


@dataclass(frozen=True, kw_only=True)
class CommittedSegment:
    """Id and attempt of a committed draft."""

    id: int
    attempt: int
    """Attempt that the records belong to."""
    is_late: bool = False
    """Whether the records are stored as late ones of that attempt."""
    previous_id: int
    """Id of the previous segment of the same rank; no segment of that rank lies in between."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """Description of what one request made durable."""

    last_seq: int
    first_step: int
    """Lowest step of the committed records."""
    last_step: int
    """Last step that the training of the rank has reached."""
    attempt: int
    """Newest attempt of the rank."""
    began: bool
    """Whether the request began that attempt."""
    events: tuple[Event, ...]
    segments: tuple[CommittedSegment, ...]
    """Committed segments, one for each draft."""


@dataclass(kw_only=True)
class _Writer:
    last_seq: int
    epoch: int
    state: str


@dataclass(kw_only=True)
class _Attempt:
    attempt: int
    last_step: int
    last_segment: int


@dataclass(kw_only=True)
class _Accepted:
    """Request that will be stored completely."""

    at: int
    """Index of the request in the commit."""
    request: CommitRequest
    is_alive: bool
    attempts: list[int] = field(default_factory=list)
    """Attempt of each draft, or its series of late records."""
    merged_into: list[int] = field(default_factory=list)
    """Attempt that each draft belongs to."""
    began: bool = False
    """Whether the request begins a new attempt."""
    position: TrainingPosition = NOT_BEGUN
    """Position of the rank's training after the request."""
    happened: list[Event] = field(default_factory=list)
    """Events: rollbacks, and findings of the audit."""


@dataclass(kw_only=True)
class _LateSeries:
    """Series of late records of one rank, whose steps ascend."""

    number: int
    attempt: int
    """Attempt that the series belongs to."""
    last_step: int


@dataclass(kw_only=True)
class _Ledger:
    """Attempts of the ranks that a transaction stores records of, updated as requests are accepted."""

    current: dict[RunRank, _Attempt] = field(default_factory=dict)
    """Newest attempt of each rank."""
    late: dict[RunRank, list[_LateSeries]] = field(default_factory=dict)
    """Series of late records of each rank that sends such records."""
    begun: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the attempts and series that begin."""
    left: list[dict[str, Any]] = field(default_factory=list)
    """Last steps of attempts that were replaced, and of series that continue."""

    def moved(self, request: CommitRequest) -> TrainingMovedError | None:
        """Return the error for a request whose late records were told apart for a position that is outdated."""
        now, known = self.current.get(request.run_rank), request.position
        if now is None or known is None or (known.attempt, known.last_step) == (now.attempt, now.last_step):
            return None
        first = request.drafts[0]
        if len(request.drafts) == 1 and not first.is_late and first.first_step >= now.last_step:
            return None  # It continues the training, whatever was known of it.
        return TrainingMovedError(now.attempt, now.last_step)

    def assign(self, item: _Accepted) -> None:
        """Assign an attempt or a series of late records to every draft of a request."""
        key = item.request.run_rank
        for draft in item.request.drafts:
            now = self.current.get(key)
            if draft.is_late and now is not None:
                number = self._assign_late(item, draft, now)
                if number is not None:
                    item.attempts.append(number)
                    item.merged_into.append(now.attempt)
                    continue
            if now is None or draft.first_step < now.last_step:
                now = self._begin(item, draft, now)
            now.last_step = draft.last_step
            item.attempts.append(now.attempt)
            item.merged_into.append(now.attempt)
        reached = self.current[key]
        item.position = TrainingPosition(attempt=reached.attempt, last_step=reached.last_step)

    def _begin(self, item: _Accepted, draft: SegmentDraft, before: _Attempt | None) -> _Attempt:
        key = item.request.run_rank
        attempt = 0 if before is None else before.attempt + 1
        last_segment = 0 if before is None else before.last_segment
        self.begun.append(_attempt_row(item, draft, attempt, merged_into=None))
        if before is not None:
            self.left.append(_reached(key, before))
            detail = {"from_step": before.last_step}
            item.happened.append(Event(step=draft.first_step, kind=EventKind.ROLLBACK, attempt=attempt, detail=detail))
        item.began = True
        now = self.current[key] = _Attempt(attempt=attempt, last_step=draft.last_step, last_segment=last_segment)
        return now

    def _assign_late(self, item: _Accepted, draft: SegmentDraft, now: _Attempt) -> int | None:
        """Return the number of a series that late records continue or begin, or None if there are too many of them."""
        key = item.request.run_rank
        known = self.late.setdefault(key, [])
        own = [series for series in known if series.attempt == now.attempt]
        # The series that ends closest below keeps the number of series as low as possible.
        fitting = max((s for s in own if s.last_step <= draft.first_step), key=lambda s: s.last_step, default=None)
        if fitting is not None:
            fitting.last_step = draft.last_step
            self.left.append(_reached(key, _Attempt(attempt=fitting.number, last_step=draft.last_step, last_segment=0)))
            return fitting.number
        if len(own) >= MAX_LATE_SERIES:
            return None
        number = min((series.number for series in known), default=0) - 1
        known.append(_LateSeries(number=number, attempt=now.attempt, last_step=draft.last_step))
        self.begun.append(_attempt_row(item, draft, number, merged_into=now.attempt))
        return number


def _attempt_row(item: _Accepted, draft: SegmentDraft, number: int, *, merged_into: int | None) -> dict[str, Any]:
    run_id, rank = item.request.run_rank
    return {
        "run_id": run_id,
        "rank": rank,
        "attempt": number,
        "first_step": draft.first_step,
        "last_step": draft.last_step,
        "started_at": _began_at(draft, item.request.now),
        "merged_into": merged_into,
    }


def _began_at(draft: SegmentDraft, now: float) -> float:
    """Return the time of the first record of a draft by the clock of the training process, or ``now`` if it has none.

    An imported run has the times of its log.
    """
    time = float(draft.columns.times[0])
    return time if math.isfinite(time) else now


class CommitStore:
    """Stores the batches that writers send."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def commit(self, requests: Sequence[CommitRequest]) -> list[Commit | ServerError]:
        """Store all requests in one transaction, and return the outcome of each.

        A request is refused completely with `WriterTakenError` if a later connection has taken over the writer, with
        `SequenceMovedError` if the writer's last sequence is a different one, with `TrainingMovedError` if late records
        have to be told apart again, and with `RunDeletedError`. Raises `DatabaseError`, in which case nothing of any
        request is stored.
        """
        outcomes: list[Commit | ServerError | None] = [None] * len(requests)
        # A single request may wait for locked rows. Several requests must not wait for the rows of one of them.
        patience = LOCK_TIMEOUT if len(requests) > 1 else None
        cost = sum(len(draft.payload) for request in requests for draft in request.drafts)
        async with self._database.write("commits", cost, patience=patience) as connection:
            ledger, accepted = await _accept(connection, requests, outcomes)
            if accepted:
                for commit, item in zip(await _store(connection, ledger, accepted), accepted, strict=True):
                    outcomes[item.at] = commit
        return [outcome for outcome in outcomes if outcome is not None]


async def _accept(
    connection: AsyncConnection, requests: Sequence[CommitRequest], outcomes: list[Commit | ServerError | None]
) -> tuple[_Ledger, list[_Accepted]]:
    """Lock the rows that the requests change, refuse requests that cannot be stored, and assign attempts."""
    ids = sorted({request.writer.writer_id for request in requests})
    rows = await connection.execute(LOCK_WRITERS, {"ids": padded(ids)})
    known = {row.id: _Writer(last_seq=row.last_seq, epoch=row.epoch, state=row.state) for row in rows}
    run_ids = sorted({request.writer.run_id for request in requests if request.writer.writer_id in known})
    shown = set((await connection.execute(LOCK_RUNS, {"ids": padded(run_ids)})).scalars()) if run_ids else set()
    locked = [request for request in requests if request.writer.run_id in shown]
    ledger = await _read_ledger(connection, locked)
    accepted = []
    for at, request in enumerate(requests):
        own = request.writer
        writer = known.get(own.writer_id)
        if writer is None or own.run_id not in shown:
            outcomes[at] = RunDeletedError(own.run_id)
        elif writer.epoch != own.epoch:
            outcomes[at] = WriterTakenError()
        elif writer.last_seq != request.expected_seq:
            outcomes[at] = SequenceMovedError(writer.last_seq)
        elif (moved := ledger.moved(request)) is not None:
            outcomes[at] = moved
        else:
            is_alive = await is_running(connection, own.run_id, own.writer_id, own.rank, writer.state)
            writer.last_seq = request.drafts[-1].last_seq
            item = _Accepted(at=at, request=request, is_alive=is_alive)
            ledger.assign(item)
            accepted.append(item)
    return ledger, accepted


async def _read_ledger(connection: AsyncConnection, requests: Sequence[CommitRequest]) -> _Ledger:
    """Read the attempts of the requests' ranks, whose runs are locked."""
    ledger = _Ledger()
    if not requests:
        return ledger
    keys = {request.run_rank for request in requests}
    ids = {
        "run_ids": padded(sorted({run_id for run_id, _ in keys})),
        "ranks": padded(sorted({rank for _, rank in keys})),
    }
    for row in await connection.execute(LAST_ATTEMPTS, ids):
        ledger.current[row.run_id, row.rank] = _Attempt(
            attempt=row.attempt, last_step=row.last_step, last_segment=row.last_segment
        )
    if any(draft.is_late for request in requests for draft in request.drafts):
        for row in await connection.execute(LATE_SERIES, ids):
            key = (row.run_id, row.rank)
            series = _LateSeries(number=row.attempt, attempt=row.merged_into, last_step=row.last_step)
            ledger.late.setdefault(key, []).append(series)
    return ledger


async def _store(connection: AsyncConnection, ledger: _Ledger, accepted: Sequence[_Accepted]) -> list[Commit]:
    """Store the accepted requests, whose rows are locked."""
    if ledger.begun:
        await connection.execute(attempts.insert(), ledger.begun)
    if ledger.left:
        await connection.execute(_MOVE_ATTEMPTS, ledger.left)
    ids = await _insert_segments(connection, accepted)
    await _insert_details(connection, accepted)
    await _move(connection, accepted, ledger)
    return [_committed(item, ids, ledger.current) for item in accepted]


async def _insert_segments(connection: AsyncConnection, accepted: Sequence[_Accepted]) -> dict[tuple[int, int], int]:
    """Insert the segments, and return their ids keyed by writer and first sequence."""
    rows = [
        {
            **_origin(item, attempt),
            "rank": item.request.writer.rank,
            "first_seq": draft.first_seq,
            "last_seq": draft.last_seq,
            "first_step": draft.first_step,
            "last_step": draft.last_step,
            "committed_at": item.request.now,
            "payload": draft.payload,
            "checksum": crc32(draft.payload),
        }
        for item in accepted
        for draft, attempt in zip(item.request.drafts, item.attempts, strict=True)
    ]
    stored = await connection.execute(_INSERT_SEGMENTS, rows)
    return {(row.writer_id, row.first_seq): row.id for row in stored}


async def _insert_details(connection: AsyncConnection, accepted: Sequence[_Accepted]) -> None:
    """Store histograms, findings, events and names that are new. Most commits have none of these."""
    shapes = [
        {
            **_origin(item, attempt),
            "layout": shape.layout,
            "which": shape.which,
            "step": shape.step,
            "payload": shape.payload,
        }
        for item in accepted
        for draft, attempt in zip(item.request.drafts, item.attempts, strict=True)
        for shape in draft.histograms
    ]
    if shapes:
        await connection.execute(histograms.insert(), shapes)
    for item in accepted:
        item.happened += await store_audits(
            connection,
            item.request.writer,
            [
                (attempt, report)
                for draft, attempt in zip(item.request.drafts, item.merged_into, strict=True)
                for report in draft.audits
            ],
            item.request.now,
        )
    happened = [
        {
            "run_id": item.request.writer.run_id,
            "rank": item.request.writer.rank,
            "attempt": event.attempt,
            "step": event.step,
            "kind": event.kind,
            "detail": dict(event.detail),
            "created_at": item.request.now,
        }
        for item in accepted
        for event in item.happened
    ]
    if happened:
        await connection.execute(events.insert(), happened)
    names = {
        (*item.request.run_rank, name)
        for item in accepted
        for draft in item.request.drafts
        for name in draft.names
        if name not in item.request.known_names
    }
    if names:
        rows = [{"run_id": run_id, "rank": rank, "name": name} for run_id, rank, name in sorted(names)]
        await connection.execute(insert_ignore(connection, scalars), rows)


async def _move(connection: AsyncConnection, accepted: Sequence[_Accepted], ledger: _Ledger) -> None:
    """Advance the sequences of writers, the last steps of attempts, and the state of runs."""
    keys = {item.request.run_rank for item in accepted}
    await connection.execute(_MOVE_ATTEMPTS, [_reached(key, ledger.current[key]) for key in sorted(keys)])
    for is_alive in (True, False):
        some = [item for item in accepted if item.is_alive == is_alive]
        if not some:
            continue
        sequences = {
            item.request.writer.writer_id: {
                "of_writer": item.request.writer.writer_id,
                "to_seq": item.request.drafts[-1].last_seq,
                "now": item.request.now,
            }
            for item in some
        }
        reached = {
            item.request.writer.run_id: {
                "of_run": item.request.writer.run_id,
                "to_step": item.position.last_step,
                "to_attempt": item.position.attempt,
                "now": item.request.now,
            }
            for item in some
        }
        await connection.execute(_MOVE_WRITERS[is_alive], _rows(sequences, is_alive))
        await connection.execute(_MOVE_RUNS[is_alive], _rows(reached, is_alive))


def _rows(found: dict[Any, dict[str, Any]], is_alive: bool) -> list[dict[str, Any]]:
    """Return the values in the order of their keys, with the time only where it is written."""
    rows = [found[key] for key in sorted(found)]
    return rows if is_alive else [{name: row[name] for name in row if name != "now"} for row in rows]


def _origin(item: _Accepted, attempt: int) -> dict[str, Any]:
    own = item.request.writer
    return {"run_id": own.run_id, "writer_id": own.writer_id, "attempt": attempt}


def _reached(key: RunRank, attempt: _Attempt) -> dict[str, Any]:
    return {
        "of_run": key[0],
        "of_rank": key[1],
        "of_attempt": attempt.attempt,
        "to_step": attempt.last_step,
    }


def _committed(item: _Accepted, ids: dict[tuple[int, int], int], current: dict[RunRank, _Attempt]) -> Commit:
    """Return the commit of a request. Must be called in the order in which the requests were stored."""
    request, reached = item.request, current[item.request.run_rank]
    committed = []
    for draft, number, attempt in zip(request.drafts, item.attempts, item.merged_into, strict=True):
        own = ids[request.writer.writer_id, draft.first_seq]
        committed.append(
            CommittedSegment(id=own, attempt=attempt, is_late=number != attempt, previous_id=reached.last_segment)
        )
        reached.last_segment = own
    return Commit(
        last_seq=request.drafts[-1].last_seq,
        first_step=min(draft.first_step for draft in request.drafts),
        last_step=item.position.last_step,
        attempt=item.position.attempt,
        began=item.began,
        events=tuple(item.happened),
        segments=tuple(committed),
    )
