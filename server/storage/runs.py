"""Runs, their writers and layouts: registration, states, and the summaries of the fleet page."""

from __future__ import annotations

import base64
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Table, and_, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from client_sdk.protocol import Hello, Layout, Optimizer
from server.errors import LayoutChanged, ProjectMismatch
from server.models import AlertKind, AlertState, RunState
from server.schema import alerts, attempts, layouts, monitors, runs, scalars, segments, writers
from server.storage.alerts import shown_state
from server.storage.database import Database

DERIVED_STATISTIC = "bimodality"
"""Added to every layout: the server computes it from the ratio histograms."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A writer of a run, as the database knows it after its hello."""

    run_id: str
    project: str
    writer_id: int
    rank: int
    last_seq: int
    layouts: Mapping[int, Layout]


@dataclass(frozen=True, kw_only=True)
class StoredLayout:
    """A layout with its place in the run. Its statistics include `DERIVED_STATISTIC`."""

    writer_id: int
    rank: int
    layout: Layout


@dataclass(frozen=True, kw_only=True)
class RunPage:
    runs: list[dict[str, Any]]
    next_cursor: str | None


class RunStore:
    """Everything about a run but its numbers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, hello: Hello, now: float) -> Registration:
        """Create or rejoin the run and the writer, and add the layouts that are new.

        Raises `ProjectMismatch`, `LayoutChanged` and `DatabaseError`.
        """
        async with self._database.write() as connection:
            run_id = hello.run_id or await _run_of_writer(connection, hello) or uuid.uuid4().hex[:16]
            await connection.execute(
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
            row = (await connection.execute(select(runs.c.project).where(runs.c.id == run_id).with_for_update())).one()
            if row.project != hello.project:
                raise ProjectMismatch(run_id)
            writer_id, last_seq = await _register_writer(connection, run_id, hello, now)
            known = await _register_layouts(connection, writer_id, hello.layouts)
            await _refresh_run(connection, run_id, now)
        return Registration(
            run_id=run_id,
            project=hello.project,
            writer_id=writer_id,
            rank=hello.rank,
            last_seq=last_seq,
            layouts=known,
        )

    async def finish_writer(self, run_id: str, writer_id: int, state: RunState, now: float) -> RunState:
        """Note that a writer is done; the run is done when no other of its writers is running. Returns the run's state."""
        async with self._database.write() as connection:
            await connection.execute(
                update(writers).where(writers.c.id == writer_id).values(state=state, last_seen_at=now)
            )
            newest = select(func.max(writers.c.id)).where(writers.c.run_id == run_id).group_by(writers.c.rank)
            rows = await connection.execute(select(writers.c.state).where(writers.c.id.in_(newest)))
            states = {row.state for row in rows}
            if RunState.RUNNING in states:
                result = RunState.RUNNING
            else:
                result = RunState.CRASHED if RunState.CRASHED in states else RunState.FINISHED
            await connection.execute(update(runs).where(runs.c.id == run_id).values(state=result, last_seen_at=now))
        return result

    async def heartbeat(self, writer_ids: Sequence[int], now: float) -> None:
        """The writers are connected: they and their runs are alive."""
        if not writer_ids:
            return
        async with self._database.write() as connection:
            await connection.execute(update(writers).where(writers.c.id.in_(writer_ids)).values(last_seen_at=now))
            alive = select(writers.c.run_id).where(writers.c.id.in_(writer_ids))
            await connection.execute(
                update(runs).where(runs.c.id.in_(alive), runs.c.state == RunState.RUNNING).values(last_seen_at=now)
            )

    async def mark_stale(self, before: float) -> list[str]:
        """Runs that were running and have not been heard of since ``before`` become stale; returns them."""
        silent = and_(runs.c.state == RunState.RUNNING, runs.c.last_seen_at < before)
        async with self._database.read() as connection:
            if (await connection.execute(select(runs.c.id).where(silent).limit(1))).first() is None:
                return []
        async with self._database.write() as connection:
            found = await connection.execute(
                update(runs).where(silent).values(state=RunState.STALE).returning(runs.c.id)
            )
            ids = [row.id for row in found]
            await connection.execute(
                update(writers)
                .where(writers.c.run_id.in_(ids), writers.c.state == RunState.RUNNING)
                .values(state=RunState.STALE)
            )
            return ids

    async def project_of(self, run_id: str) -> str | None:
        async with self._database.read() as connection:
            return (await connection.execute(select(runs.c.project).where(runs.c.id == run_id))).scalar_one_or_none()

    async def layouts(self, run_id: str) -> list[StoredLayout]:
        """Every layout of the run, by rank, then in the order in which they came."""
        async with self._database.read() as connection:
            rows = await connection.execute(
                select(layouts, writers.c.rank)
                .join(writers, layouts.c.writer_id == writers.c.id)
                .where(writers.c.run_id == run_id)
                .order_by(writers.c.rank, writers.c.id, layouts.c.number)
            )
            return [StoredLayout(writer_id=row.writer_id, rank=row.rank, layout=_to_layout(row)) for row in rows]

    async def scalar_ranks(self, run_id: str) -> dict[str, int]:
        """Each scalar of the run and the lowest rank that logs it."""
        async with self._database.read() as connection:
            rows = await connection.execute(
                select(scalars.c.name, func.min(scalars.c.rank).label("rank"))
                .where(scalars.c.run_id == run_id)
                .group_by(scalars.c.name)
                .order_by(scalars.c.name)
            )
            return {row.name: row.rank for row in rows}

    async def summary(self, run_id: str) -> dict[str, Any] | None:
        """One run as the API shows it in lists, or None."""
        async with self._database.read() as connection:
            rows = (await connection.execute(select(runs).where(runs.c.id == run_id))).all()
            found = await _summaries(connection, rows)
        return found[0] if found else None

    async def details(self, run_id: str) -> dict[str, Any] | None:
        """One run with its layers, scalars, statistics and attempts, or None."""
        summary = await self.summary(run_id)
        if summary is None:
            return None
        stored = await self.layouts(run_id)
        async with self._database.read() as connection:
            rows = await connection.execute(
                select(attempts).where(attempts.c.run_id == run_id).order_by(attempts.c.rank, attempts.c.attempt)
            )
            tries = [
                {
                    "rank": row.rank,
                    "attempt": row.attempt,
                    "first_step": row.first_step,
                    "last_step": row.last_step,
                    "started_at": row.started_at,
                }
                for row in rows
            ]
        statistics: dict[str, None] = {}
        for item in stored:
            statistics.update(dict.fromkeys(item.layout.statistics))
        return summary | {
            "layers": [name for _, _, name in layer_rows(stored)],
            "scalars": list(await self.scalar_ranks(run_id)),
            "statistics": list(statistics),
            "attempts": tries,
        }

    async def page(
        self, *, project: str | None, state: str | None, limit: int, cursor: tuple[float, str] | None
    ) -> RunPage:
        """Summaries, the newest first. ``cursor`` is (created_at, id) of the last run of the page before."""
        query = select(runs).order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(limit + 1)
        if project is not None:
            query = query.where(runs.c.project == project)
        if state is not None:
            query = query.where(runs.c.state == state)
        if cursor is not None:
            created_at, run_id = cursor
            query = query.where(
                or_(runs.c.created_at < created_at, and_(runs.c.created_at == created_at, runs.c.id < run_id))
            )
        async with self._database.read() as connection:
            rows = list((await connection.execute(query)).all())
            more = len(rows) > limit
            found = await _summaries(connection, rows[:limit])
        last = rows[limit - 1] if more else None
        return RunPage(runs=found, next_cursor=None if last is None else encode_cursor(last.created_at, last.id))

    async def lagging(self) -> list[str]:
        """Runs that a server which starts has to follow: segments that the detectors have not read, or alerts still open
        though the run has ended."""
        unread = (
            select(segments.c.run_id)
            .outerjoin(monitors, monitors.c.run_id == segments.c.run_id)
            .where(or_(monitors.c.rank.is_(None), monitors.c.rank == segments.c.rank))
            .group_by(segments.c.run_id)
            .having(func.max(segments.c.id) > func.coalesce(func.max(monitors.c.position), 0))
        )
        ended = (
            select(alerts.c.run_id)
            .join(runs, runs.c.id == alerts.c.run_id)
            .where(alerts.c.state != AlertState.RESOLVED, runs.c.state.in_([RunState.FINISHED, RunState.CRASHED]))
        )
        async with self._database.read() as connection:
            found = [*(await connection.execute(unread)), *(await connection.execute(ended))]
            return sorted({row.run_id for row in found})

    async def state_of(self, run_id: str) -> str | None:
        async with self._database.read() as connection:
            return (await connection.execute(select(runs.c.state).where(runs.c.id == run_id))).scalar_one_or_none()


def insert_ignore(connection: AsyncConnection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An insert that does nothing where the row is there already."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def layer_rows(stored: Sequence[StoredLayout]) -> list[tuple[int, str, str]]:
    """(rank, layer, displayed name) of each row of the heatmap: a layer that several layouts of a rank share is one row.

    Where several ranks have layers, the displayed name tells them apart: "rank1/head".
    """
    rows = dict.fromkeys((item.rank, layer) for item in stored for layer in item.layout.layers)
    several = len({rank for rank, _ in rows}) > 1
    return [(rank, layer, f"rank{rank}/{layer}" if several else layer) for rank, layer in rows]


def encode_cursor(created_at: float, run_id: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([created_at, run_id])).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[float, str]:
    """Raises `ValueError` on anything that `encode_cursor` did not make."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.json.decode(raw, type=tuple[float, str])
    except (ValueError, msgspec.DecodeError) as error:
        raise ValueError(f"{cursor!r} is no cursor of this list") from error


async def _run_of_writer(connection: AsyncConnection, hello: Hello) -> str | None:
    """The run that this writer joined when the server chose the name."""
    query = (
        select(writers.c.run_id)
        .join(runs, runs.c.id == writers.c.run_id)
        .where(writers.c.writer == hello.writer, runs.c.project == hello.project)
        .order_by(writers.c.id.desc())
        .limit(1)
    )
    return (await connection.execute(query)).scalar_one_or_none()


async def _register_writer(connection: AsyncConnection, run_id: str, hello: Hello, now: float) -> tuple[int, int]:
    await connection.execute(
        insert_ignore(connection, writers).values(
            run_id=run_id,
            writer=hello.writer,
            rank=hello.rank,
            last_seq=0,
            state=RunState.RUNNING,
            sdk=hello.sdk,
            started_at=hello.started_at,
            last_seen_at=now,
        )
    )
    same = and_(writers.c.run_id == run_id, writers.c.writer == hello.writer)
    row = (await connection.execute(select(writers.c.id, writers.c.rank, writers.c.last_seq).where(same))).one()
    await connection.execute(
        update(writers).where(same).values(state=RunState.RUNNING, last_seen_at=now, sdk=hello.sdk)
    )
    # A rank that was restarted goes on with a new writer; the old one will never say that it is done.
    await connection.execute(
        update(writers)
        .where(
            writers.c.run_id == run_id,
            writers.c.rank == row.rank,
            writers.c.id != row.id,
            writers.c.state == RunState.RUNNING,
        )
        .values(state=RunState.STALE)
    )
    return row.id, row.last_seq


async def _register_layouts(connection: AsyncConnection, writer_id: int, sent: Sequence[Layout]) -> dict[int, Layout]:
    rows = await connection.execute(select(layouts).where(layouts.c.writer_id == writer_id))
    known = {row.number: _to_layout(row) for row in rows}
    for layout in sent:
        statistics = with_derived(layout.statistics)
        before = known.get(layout.id)
        if before is not None:
            if before.layers != layout.layers or before.statistics != statistics:
                raise LayoutChanged(layout.id)
            continue
        await connection.execute(
            layouts.insert().values(
                writer_id=writer_id,
                number=layout.id,
                layers=list(layout.layers),
                statistics=list(statistics),
                sizes=list(layout.sizes),
                optimizer=msgspec.to_builtins(layout.optimizer),
            )
        )
        known[layout.id] = msgspec.structs.replace(layout, statistics=statistics)
    return known


def with_derived(statistics: Sequence[str]) -> tuple[str, ...]:
    """The statistics of a layout as they are stored."""
    return tuple(statistics) if DERIVED_STATISTIC in statistics else (*statistics, DERIVED_STATISTIC)


async def _refresh_run(connection: AsyncConnection, run_id: str, now: float) -> None:
    """Bring the counts and the optimizer of a run up to date with its layouts."""
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
            state=RunState.RUNNING,
            last_seen_at=now,
            layer_count=len(sizes),
            parameter_count=min(sum(sizes.values()), 2**63 - 1),
            rank_count=ranks,
            optimizer=optimizer,
        )
    )


def _to_layout(row: Any) -> Layout:
    optimizer = None
    if row.optimizer is not None:
        # JSON has no NaN; a rate that was not a number came back as null.
        known = row.optimizer if row.optimizer["lr"] is not None else {**row.optimizer, "lr": math.nan}
        optimizer = msgspec.convert(known, Optimizer)
    return Layout(
        id=row.number,
        layers=tuple(row.layers),
        statistics=tuple(row.statistics),
        sizes=tuple(row.sizes),
        optimizer=optimizer,
    )


async def _summaries(connection: AsyncConnection, rows: Sequence[Any]) -> list[dict[str, Any]]:
    """The JSON of the contract for rows of `runs`, in their order."""
    ids = [row.id for row in rows]
    query = select(alerts.c.run_id, alerts.c.kind, alerts.c.body, alerts.c.acknowledged_at)
    unsettled = await connection.execute(
        query.where(alerts.c.run_id.in_(ids), alerts.c.state != AlertState.RESOLVED).order_by(alerts.c.opened_at)
    )
    open_count: dict[str, int] = {}
    predicted: dict[str, Any] = {}
    for row in unsettled:
        open_count[row.run_id] = open_count.get(row.run_id, 0) + 1
        if row.kind == AlertKind.SPIKE_PREDICTED:
            predicted[row.run_id] = row.body["predicted_step"]
    newest = (
        select(alerts.c.run_id, func.max(alerts.c.opened_at).label("opened_at"))
        .where(alerts.c.run_id.in_(ids))
        .group_by(alerts.c.run_id)
        .subquery()
    )
    same = and_(alerts.c.run_id == newest.c.run_id, alerts.c.opened_at == newest.c.opened_at)
    last = {
        row.run_id: {
            "id": row.id,
            "kind": row.kind,
            "level": row.level,
            "state": shown_state(row.state, row.acknowledged_at),
            "title": row.body["title"],
            "step": row.step,
        }
        for row in await connection.execute(select(alerts).join(newest, same).order_by(alerts.c.step))
    }
    return [
        {
            "id": row.id,
            "project": row.project,
            "name": row.name,
            "state": row.state,
            "created_at": row.created_at,
            "last_seen_at": row.last_seen_at,
            "last_step": row.last_step,
            "step_rate": row.step_rate if row.state == RunState.RUNNING else None,
            "loss": row.loss,
            "lr": row.lr,
            "stage": row.stage,
            "stability_ratio": row.stability_ratio,
            "open_alerts": open_count.get(row.id, 0),
            "predicted_step": predicted.get(row.id),
            "last_alert": last.get(row.id),
            "sparkline": [] if row.sparkline is None else row.sparkline["max"],
            "layer_count": row.layer_count,
            "parameter_count": row.parameter_count,
            "rank_count": row.rank_count,
            "optimizer": row.optimizer,
            "attempt": row.attempt,
            "tags": row.tags,
            "config": row.config,
        }
        for row in rows
    ]
