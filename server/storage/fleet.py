"""Runs as people see them, in lists and one by one."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from client_sdk import answers
from client_sdk.vocabulary import LEVEL_RANK
from server.models import DELETING, AlertKind, AlertLevel, AlertState, RunState
from server.schema import alerts, attempts, runs, writers
from server.storage.alerts import shown_state
from server.storage.database import Database
from server.storage.id_list import padded
from server.storage.layouts import LayoutStore, layer_rows
from server.storage.loss_choices import losses_of_projects
from server.storage.runs import RunStore

_IS_SHOWN = runs.c.state != DELETING


class FleetQuery:
    """Reads runs with their alerts, layers and attempts."""

    def __init__(self, database: Database, run_store: RunStore, layouts: LayoutStore) -> None:
        self._database = database
        self._runs = run_store
        self._layouts = layouts

    async def summary(self, run_id: str) -> answers.RunSummary | None:
        """Return a run, None where it does not exist."""
        found = await self.summaries([run_id])
        return found[0] if found else None

    async def summaries(self, run_ids: Sequence[str]) -> list[answers.RunSummary]:
        """Return those of these runs that exist, in any order."""
        async with self._database.read() as connection:
            rows = (await connection.execute(select(runs).where(runs.c.id.in_(padded(run_ids)), _IS_SHOWN))).all()
            return await _summaries(connection, rows)

    async def details(self, run_id: str) -> answers.RunDetail | None:
        """Return a run with its layers, scalars, statistics and attempts, None where it does not exist."""
        summary = await self.summary(run_id)
        if summary is None:
            return None
        stored = await self._layouts.of_run(run_id)
        async with self._database.read() as connection:
            rows = await connection.execute(
                select(attempts)
                .where(attempts.c.run_id == run_id, attempts.c.merged_into.is_(None))
                .order_by(attempts.c.rank, attempts.c.attempt)
            )
            found = tuple(msgspec.convert(row, answers.Attempt, from_attributes=True) for row in rows.mappings())
            notes = await connection.scalar(select(runs.c.notes).where(runs.c.id == run_id))
            described = (
                select(writers.c.environment)
                .where(writers.c.run_id == run_id, writers.c.environment.is_not(None))
                .order_by(writers.c.rank, writers.c.started_at.desc(), writers.c.id.desc())
                .limit(1)
            )
            environment = await connection.scalar(described)
        statistics: dict[str, None] = {}
        for item in stored:
            statistics.update(dict.fromkeys(item.layout.statistics))
        return answers.RunDetail(
            **msgspec.structs.asdict(summary),
            layers=tuple(name for _, _, name in layer_rows(stored)),
            scalars=tuple(await self._runs.scalar_ranks(run_id)),
            statistics=tuple(statistics),
            attempts=found,
            notes=notes or "",
            environment=environment or {},
        )

    async def count_by_state(self) -> dict[str, int]:
        """Return the number of runs in each state, 0 for a state without runs."""
        query = select(runs.c.state, func.count().label("number")).where(_IS_SHOWN).group_by(runs.c.state)
        async with self._database.read() as connection:
            counts = {row.state: row.number for row in await connection.execute(query)}
        return {state.value: counts.get(state, 0) for state in RunState}

    async def page(
        self,
        *,
        projects: Sequence[str] | None = None,
        states: Sequence[str] | None = None,
        is_archived: bool | None = None,
        limit: int,
        cursor: tuple[float, str] | None = None,
    ) -> answers.RunPage:
        """Return a page of runs, newest first. ``cursor``: (created_at, id) of the last run of the page before.

        ``projects``, ``states`` and ``is_archived`` select runs; None selects all.
        """
        query = select(runs).where(_IS_SHOWN).order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(limit + 1)
        if projects is not None:
            query = query.where(runs.c.project.in_(padded(projects)))
        if states is not None:
            query = query.where(runs.c.state.in_(padded(states)))
        if is_archived is not None:
            query = query.where(runs.c.archived_at.is_not(None) if is_archived else runs.c.archived_at.is_(None))
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
        return answers.RunPage(
            runs=tuple(found), next_cursor=None if last is None else encode_cursor(last.created_at, last.id)
        )


def encode_cursor(created_at: float, run_id: str) -> str:
    """Return the cursor of the page that follows a run."""
    return base64.urlsafe_b64encode(msgspec.json.encode([created_at, run_id])).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[float, str]:
    """Return the arguments of `encode_cursor`. Raises `ValueError` for any other text."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.json.decode(raw, type=tuple[float, str])
    except (ValueError, msgspec.DecodeError) as error:
        raise ValueError(f"{cursor!r} is not a cursor of this list") from error


async def _summaries(connection: AsyncConnection, rows: Sequence[Any]) -> list[answers.RunSummary]:
    """Return the runs of rows of the table `runs`, in their order."""
    ids = padded([row.id for row in rows])
    query = select(alerts.c.run_id, alerts.c.kind, alerts.c.body, alerts.c.acknowledged_at)
    unresolved = await connection.execute(
        query.where(alerts.c.run_id.in_(ids), alerts.c.state == AlertState.OPEN).order_by(alerts.c.opened_at)
    )
    open_count: dict[str, int] = {}
    predicted: dict[str, answers.PredictedStep | None] = {}
    for row in unresolved:
        open_count[row.run_id] = open_count.get(row.run_id, 0) + 1
        if row.kind == AlertKind.SPIKE_PREDICTED:
            predicted[row.run_id] = msgspec.convert(row.body["predicted_step"], answers.PredictedStep | None)
    newest = (
        select(alerts.c.run_id, func.max(alerts.c.opened_at).label("opened_at"))
        .where(alerts.c.run_id.in_(ids))
        .group_by(alerts.c.run_id)
        .subquery()
    )
    same = and_(alerts.c.run_id == newest.c.run_id, alerts.c.opened_at == newest.c.opened_at)
    last = {
        row.run_id: _in_short(row)
        for row in await connection.execute(select(alerts).join(newest, same).order_by(alerts.c.step))
    }
    defaults = await losses_of_projects(connection, sorted({row.project for row in rows}))
    ended = await _ended_with(connection, [row for row in rows if row.state in (RunState.FINISHED, RunState.CRASHED)])
    return [
        answers.RunSummary(
            id=row.id,
            project=row.project,
            name=row.name,
            state=row.state,
            created_at=row.created_at,
            last_seen_at=row.last_seen_at,
            last_step=row.last_step,
            step_rate=row.step_rate if row.state == RunState.RUNNING else None,
            loss=row.loss,
            lr=row.lr,
            stage=row.stage,
            stage_reason=row.stage_reason,
            loss_name=row.loss_name,
            loss_since=row.loss_since,
            loss_choice=_loss_choice(row, defaults.get(row.project)),
            stability_ratio=row.stability_ratio,
            open_alerts=open_count.get(row.id, 0),
            predicted_step=predicted.get(row.id),
            last_alert=last.get(row.id),
            ended_with=ended.get(row.id),
            sparkline=() if row.sparkline is None else tuple(row.sparkline["max"]),
            layer_count=row.layer_count,
            parameter_count=row.parameter_count,
            rank_count=row.rank_count,
            optimizer=msgspec.convert(row.optimizer, answers.Optimizer | None),
            attempt=row.attempt,
            tags=tuple(row.tags),
            config=row.config,
            archived=row.archived_at is not None,
        )
        for row in rows
    ]


def _loss_choice(row: Any, default: str | None) -> answers.LossChoice | None:
    """Return the choice that decides the loss of a run. The default of its project does so only where it was found."""
    if row.loss_choice is not None:
        return answers.LossChoice(scalar=row.loss_choice, by="run")
    if row.chosen_loss is not None:
        return answers.LossChoice(scalar=row.chosen_loss, by="code")
    return answers.LossChoice(scalar=default, by="project") if default and default == row.loss_name else None


async def _ended_with(connection: AsyncConnection, ended: Sequence[Any]) -> dict[str, answers.LastAlert]:
    """Return the worst alert that lasted until the end of each of these runs, keyed by run id.

    Alerts of earlier attempts do not count, because the run went on from before them.
    """
    if not ended:
        return {}
    query = select(alerts).where(alerts.c.run_id.in_(padded([row.id for row in ended])))
    found = await connection.execute(query.where(alerts.c.state == AlertState.ENDED).order_by(alerts.c.step))
    attempt_of = {row.id: row.attempt for row in ended}
    lasting = [row for row in found if row.attempt == attempt_of[row.run_id] and row.level != AlertLevel.WATCH]
    lasting.sort(key=_severity)
    return {row.run_id: _in_short(row) for row in lasting}


def _severity(row: Any) -> tuple[int, int]:
    """Return the sort key of an alert's row, highest for the worst."""
    kinds = list(reversed(answers.ENDED_WITH))
    return LEVEL_RANK[row.level], kinds.index(row.kind) if row.kind in kinds else -1


def _in_short(row: Any) -> answers.LastAlert:
    """Return the alert of a row of the table `alerts` in short."""
    return answers.LastAlert(
        id=row.id,
        kind=row.kind,
        level=row.level,
        state=shown_state(row.state, row.acknowledged_at),
        title=row.body["title"],
        step=row.step,
    )
