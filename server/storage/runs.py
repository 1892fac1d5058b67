"""Runs and their writers: registration and states.

At most one writer of a rank is running: the one that sent the last hello. A writer that another one has replaced is
stale. So is a writer that has been silent for long, but its next record makes it running again. A writer that has ended
remains ended if a delayed frame of it arrives while another writer has its rank. Transactions lock rows of `writers`
before those of `runs`.

Each hello gives its connection the next *epoch* of the writer. Data from an earlier epoch is refused in the transaction
that would store it. Of several connections of the same writer, on any servers, only the last one can therefore append,
however delayed the others are.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from client_sdk.protocol import Hello, Layout
from client_sdk.vocabulary import AlertState, RunState
from server.errors import ProjectMismatchError, RunDeletedError, WriterTakenError
from server.models import DELETING
from server.schema import alerts, attempts, layouts, monitors, project_losses, runs, scalars, segments, writers
from server.storage.database import Database, insert_ignore
from server.storage.id_list import padded
from server.storage.layouts import register_layouts
from server.storage.loss_choices import renew_version

HELLO_COST = 16_384.0
"""Cost of a hello in bytes of a commit, for the order in which runs get the write lock."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """Writer of a run as registered by its hello."""

    run_id: str
    project: str
    writer_id: int
    rank: int
    last_seq: int
    epoch: int
    layouts: Mapping[int, Layout]


@dataclass(frozen=True, kw_only=True)
class RunLabels:
    """Properties by which alert rules select runs, and the choices of the loss. All but the project may change."""

    project: str
    name: str
    tags: tuple[str, ...]
    chosen_loss: str | None = None
    """Name of the scalar that a person, or else the training's code, chose as the loss."""
    preferred_loss: str | None = None
    """Name of the scalar that is the loss of the project's runs where they log it."""


@dataclass(frozen=True, kw_only=True)
class RunVersion:
    """State of a run and the version of its measurements."""

    project: str
    state: str
    version: str
    """Version of the run's measurements: equal versions mean equal measurements.

    Every commit advances a sequence, every new layout changes a count, and every repair, which may lose measurements,
    is counted too.
    """


class RunStore:
    """Stores runs and their writers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, hello: Hello, now: float) -> Registration:
        """Create or rejoin the run and the writer, and add the layouts that are new.

        Raises `ProjectMismatchError`, `RunDeletedError`, `LayoutChangedError` and `DatabaseError`.
        """
        # Hellos of one project queue behind each other, and commits do not wait for all of them.
        async with self._database.write(f"hello to {hello.project}", HELLO_COST) as connection:
            run_id = hello.run_id or await _run_of_writer(connection, hello) or uuid.uuid4().hex[:16]
            made = await connection.execute(
                insert_ignore(connection, runs).values(
                    id=run_id,
                    project=hello.project,
                    name=hello.name or run_id[:8],
                    state=RunState.RUNNING,
                    config=hello.config,
                    tags=list(hello.tags),
                    created_at=hello.started_at or now,
                    last_seen_at=now,
                    layer_count=0,
                    parameter_count=0,
                    rank_count=0,
                    attempt=0,
                )
            )
            # Not locked: commits lock the writer first and the run after it, and the statements below follow that
            # order.
            known = select(runs.c.project, runs.c.state, runs.c.chosen_loss).where(runs.c.id == run_id)
            row = (await connection.execute(known)).one()
            if row.project != hello.project:
                raise ProjectMismatchError(run_id)
            if row.state == DELETING:
                raise RunDeletedError(run_id)
            writer = await _register_writer(connection, run_id, hello, now)
            layouts_of, has_new_layouts = await register_layouts(connection, writer.writer_id, hello.layouts)
            if writer.is_new or has_new_layouts:
                await _refresh_run(connection, run_id)
            if not writer.is_delayed:
                shown = await connection.execute(
                    update(runs)
                    .where(runs.c.id == run_id, runs.c.state != DELETING)
                    .values(state=RunState.RUNNING, last_seen_at=now, **_chosen_loss(hello))
                )
                if shown.rowcount != 1:
                    raise RunDeletedError(run_id)
                is_known = made.rowcount != 1  # no server can have read the choices of a new run
                if is_known and hello.loss is not msgspec.UNSET and hello.loss != row.chosen_loss:
                    await renew_version(connection)
        return Registration(
            run_id=run_id,
            project=hello.project,
            writer_id=writer.writer_id,
            rank=hello.rank,
            last_seq=writer.last_seq,
            epoch=writer.epoch,
            layouts=layouts_of,
        )

    async def finish_writer(
        self, run_id: str, writer_id: int, state: RunState, now: float, *, epoch: int | None = None
    ) -> RunState:
        """Record the end of a writer. The run ends when none of its writers is running. Returns the state of the run.

        The run has crashed if the last writer of any rank has crashed, the last one being the one heard of last.
        ``epoch`` is that of the connection that reports the end, or None without a connection. Raises
        `WriterTakenError` and `RunDeletedError`.
        """
        async with self._database.write() as connection:
            found = await connection.execute(select(writers.c.epoch).where(writers.c.id == writer_id).with_for_update())
            current = found.scalar_one_or_none()
            if current is None:
                raise RunDeletedError(run_id)
            if epoch is not None and current != epoch:
                raise WriterTakenError
            await connection.execute(
                update(writers).where(writers.c.id == writer_id).values(state=state, last_seen_at=now)
            )
            # The ranks of a run end at about the same time, and each must see the end of those before it.
            await connection.execute(select(runs.c.id).where(runs.c.id == run_id).with_for_update())
            rows = await connection.execute(
                select(writers.c.rank, writers.c.state)
                .where(writers.c.run_id == run_id)
                .order_by(writers.c.last_seen_at, writers.c.id)
            )
            everyone = [(row.rank, row.state) for row in rows]
            last = set(dict(everyone).values())
            if any(found == RunState.RUNNING for _, found in everyone):
                result = RunState.RUNNING
            else:
                result = RunState.CRASHED if RunState.CRASHED in last else RunState.FINISHED
            await connection.execute(
                update(runs).where(runs.c.id == run_id, runs.c.state != DELETING).values(state=result, last_seen_at=now)
            )
        return result

    async def heartbeat(self, writer_ids: Sequence[int], now: float) -> None:
        """Record that connected writers, and their runs, are alive."""
        if not writer_ids:
            return
        async with self._database.write() as connection:
            # Locked in the order of their ids, because other servers do the same for other ranks of these runs.
            running = and_(writers.c.id.in_(padded(writer_ids)), writers.c.state == RunState.RUNNING)
            query = select(writers.c.id, writers.c.run_id).where(running).order_by(writers.c.id).with_for_update()
            found = (await connection.execute(query)).all()
            ids = padded([row.id for row in found])
            await connection.execute(update(writers).where(writers.c.id.in_(ids)).values(last_seen_at=now))
            alive = and_(runs.c.id.in_(padded({row.run_id for row in found})), runs.c.state == RunState.RUNNING)
            await connection.execute(select(runs.c.id).where(alive).order_by(runs.c.id).with_for_update())
            await connection.execute(update(runs).where(alive).values(last_seen_at=now))

    async def mark_stale(self, before: float) -> list[str]:
        """Mark running runs as stale that have not been heard of since ``before``. Returns their ids."""
        silent = and_(runs.c.state == RunState.RUNNING, runs.c.last_seen_at < before)
        async with self._database.read() as connection:
            suspects = list((await connection.execute(select(runs.c.id).where(silent))).scalars())
        if not suspects:
            return []
        async with self._database.write() as connection:
            named = padded(suspects)
            theirs = select(writers.c.id).where(writers.c.run_id.in_(named))
            await connection.execute(theirs.order_by(writers.c.id).with_for_update())
            silent = and_(silent, runs.c.id.in_(named))
            await connection.execute(select(runs.c.id).where(silent).order_by(runs.c.id).with_for_update())
            found = await connection.execute(
                update(runs).where(silent).values(state=RunState.STALE).returning(runs.c.id)
            )
            ids = [row.id for row in found]
            await connection.execute(
                update(writers)
                .where(writers.c.run_id.in_(padded(ids)), writers.c.state == RunState.RUNNING)
                .values(state=RunState.STALE)
            )
            return ids

    async def project_of(self, run_id: str) -> str | None:
        """Return the project of a run, or None if there is no such run."""
        async with self._database.read() as connection:
            return (await connection.execute(select(runs.c.project).where(runs.c.id == run_id))).scalar_one_or_none()

    async def labels(self, run_id: str) -> RunLabels | None:
        """Return the properties for alert rules, or None if there is no such run."""
        async with self._database.read() as connection:
            chosen = func.coalesce(runs.c.loss_choice, runs.c.chosen_loss).label("chosen")
            query = (
                select(runs.c.project, runs.c.name, runs.c.tags, chosen, project_losses.c.loss)
                .outerjoin(project_losses, project_losses.c.project == runs.c.project)
                .where(runs.c.id == run_id)
            )
            row = (await connection.execute(query)).one_or_none()
            if row is None:
                return None
            return RunLabels(
                project=row.project,
                name=row.name,
                tags=tuple(row.tags),
                chosen_loss=row.chosen,
                preferred_loss=row.loss,
            )

    async def loss_name(self, run_id: str) -> str | None:
        """Return the name of the scalar that the detectors read as the loss of a run, or None if none has arrived."""
        async with self._database.read() as connection:
            return (await connection.execute(select(runs.c.loss_name).where(runs.c.id == run_id))).scalar_one_or_none()

    async def version_of(self, run_id: str) -> RunVersion | None:
        """Return the project, state and version of a run, or None if there is no such run."""
        count = select(func.count()).where(layouts.c.writer_id == writers.c.id).scalar_subquery()
        query = (
            select(
                runs.c.project, runs.c.state, runs.c.repairs, writers.c.id, writers.c.last_seq, count.label("layouts")
            )
            .outerjoin(writers, writers.c.run_id == runs.c.id)
            .where(runs.c.id == run_id)
            .order_by(writers.c.id)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        if not rows:
            return None
        sequences = ",".join(f"{row.id}:{row.last_seq}:{row.layouts}" for row in rows)
        return RunVersion(project=rows[0].project, state=rows[0].state, version=f"{rows[0].repairs},{sequences}")

    async def has_attempt(self, run_id: str, attempt: int) -> bool:
        """Return whether the run has an attempt of this number. A run without records is in its first, 0."""
        is_newest = select(runs.c.id).where(runs.c.id == run_id, runs.c.attempt == attempt)
        numbered = select(attempts.c.attempt).where(
            attempts.c.run_id == run_id, attempts.c.attempt == attempt, attempts.c.merged_into.is_(None)
        )
        async with self._database.read() as connection:
            return bool(await connection.scalar(select(or_(is_newest.exists(), numbered.exists()))))

    async def scalar_ranks(self, run_id: str) -> dict[str, int]:
        """Return the lowest rank that logs each scalar of the run, keyed by name."""
        async with self._database.read() as connection:
            rows = await connection.execute(
                select(scalars.c.name, func.min(scalars.c.rank).label("rank"))
                .where(scalars.c.run_id == run_id)
                .group_by(scalars.c.name)
                .order_by(scalars.c.name)
            )
            return {row.name: row.rank for row in rows}

    async def lagging(self) -> list[str]:
        """Return the runs that a server has to follow when it starts.

        These are the runs with segments that the detectors have not read, among them those of a lower rank than the
        one that they read so far, and the ended runs with open alerts.
        """
        has_lower_rank = func.min(segments.c.rank) < func.max(monitors.c.rank)
        has_unread = func.max(segments.c.id) > func.coalesce(func.max(monitors.c.position), 0)
        unread = (
            select(segments.c.run_id)
            .outerjoin(monitors, monitors.c.run_id == segments.c.run_id)
            .where(or_(monitors.c.rank.is_(None), segments.c.rank <= monitors.c.rank))
            .group_by(segments.c.run_id)
            .having(or_(has_lower_rank, has_unread))
        )
        ended = (
            select(alerts.c.run_id)
            .join(runs, runs.c.id == alerts.c.run_id)
            .where(alerts.c.state == AlertState.OPEN, runs.c.state.in_([RunState.FINISHED, RunState.CRASHED]))
        )
        async with self._database.read() as connection:
            found = [*(await connection.execute(unread)), *(await connection.execute(ended))]
            return sorted({row.run_id for row in found})

    async def state_of(self, run_id: str) -> str | None:
        """Return the state of a run, or None if there is no such run."""
        async with self._database.read() as connection:
            return (await connection.execute(select(runs.c.state).where(runs.c.id == run_id))).scalar_one_or_none()


def _chosen_loss(hello: Hello) -> dict[str, str]:
    """Return the column for the loss that a client has chosen, if it has."""
    return {} if hello.loss is msgspec.UNSET else {"chosen_loss": hello.loss}


def _environment(hello: Hello) -> dict[str, dict[str, Any]]:
    """Return the column for the environment that a client has described, if it has."""
    return {} if hello.environment is msgspec.UNSET else {"environment": hello.environment}


async def _run_of_writer(connection: AsyncConnection, hello: Hello) -> str | None:
    """Return the run that this writer joined when the server chose the run's id."""
    query = (
        select(writers.c.run_id)
        .join(runs, runs.c.id == writers.c.run_id)
        .where(writers.c.writer == hello.writer, runs.c.project == hello.project)
        .order_by(writers.c.id.desc())
        .limit(1)
    )
    return (await connection.execute(query)).scalar_one_or_none()


async def is_running(connection: AsyncConnection, run_id: str, writer_id: int, rank: int, state: str) -> bool:
    """Return whether a writer that has sent a record counts as running.

    A stale writer does, if no other writer has replaced it.
    """
    if state != RunState.STALE:
        return state == RunState.RUNNING
    others = select(writers.c.id).where(
        writers.c.run_id == run_id,
        writers.c.rank == rank,
        writers.c.id != writer_id,
        writers.c.state == RunState.RUNNING,
    )
    return (await connection.execute(others.limit(1))).first() is None


@dataclass(frozen=True, kw_only=True)
class _RegisteredWriter:
    """Writer after its hello."""

    writer_id: int
    last_seq: int
    epoch: int
    is_new: bool
    is_delayed: bool = False
    """Whether this is a delayed hello of an ended writer whose rank another writer has taken over."""


async def _register_writer(connection: AsyncConnection, run_id: str, hello: Hello, now: float) -> _RegisteredWriter:
    inserted = await connection.execute(
        insert_ignore(connection, writers).values(
            run_id=run_id,
            writer=hello.writer,
            rank=hello.rank,
            last_seq=0,
            epoch=0,
            state=RunState.RUNNING,
            sdk=hello.sdk,
            started_at=hello.started_at,
            last_seen_at=now,
            **_environment(hello),
        )
    )
    same = and_(writers.c.run_id == run_id, writers.c.writer == hello.writer)
    row = (
        await connection.execute(
            select(
                *(writers.c[name] for name in ("id", "rank", "last_seq", "epoch", "state", "last_seen_at")),
            )
            .where(same)
            .with_for_update()
        )
    ).one()
    epoch = row.epoch + 1
    others = and_(writers.c.run_id == run_id, writers.c.rank == row.rank, writers.c.id != row.id)
    if row.state in {RunState.FINISHED, RunState.CRASHED}:
        later = select(writers.c.id).where(others, writers.c.last_seen_at > row.last_seen_at).limit(1)
        if (await connection.execute(later)).first() is not None:
            await connection.execute(update(writers).where(same).values(epoch=epoch))
            return _RegisteredWriter(
                writer_id=row.id, last_seq=row.last_seq, epoch=epoch, is_new=False, is_delayed=True
            )
    await connection.execute(
        update(writers)
        .where(same)
        .values(state=RunState.RUNNING, last_seen_at=now, sdk=hello.sdk, epoch=epoch, **_environment(hello))
    )
    # A restarted rank continues with a new writer; the old writer will never report its end.
    await connection.execute(
        update(writers).where(others, writers.c.state == RunState.RUNNING).values(state=RunState.STALE)
    )
    return _RegisteredWriter(writer_id=row.id, last_seq=row.last_seq, epoch=epoch, is_new=inserted.rowcount == 1)


async def _refresh_run(connection: AsyncConnection, run_id: str) -> None:
    """Update the counts and the optimizer of a run from its layouts."""
    rows = await connection.execute(
        select(layouts, writers.c.rank)
        .join(writers, layouts.c.writer_id == writers.c.id)
        .where(writers.c.run_id == run_id)
        .order_by(writers.c.rank, writers.c.id, layouts.c.number)
    )
    sizes: dict[tuple[int, str], int] = {}
    optimizer = None
    for row in rows:
        for index, layer in enumerate(row.layers):
            sizes[row.rank, layer] = row.sizes[index] if row.sizes else 0
        optimizer = row.optimizer if row.optimizer is not None else optimizer
    ranks = select(func.count(writers.c.rank.distinct())).where(writers.c.run_id == run_id).scalar_subquery()
    await connection.execute(
        update(runs)
        .where(runs.c.id == run_id)
        .values(
            layer_count=len(sizes),
            parameter_count=min(sum(sizes.values()), 2**63 - 1),
            rank_count=ranks,
            optimizer=optimizer,
        )
    )
