"""Detector states: how far the detectors of each run have read, stored together with their findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Row, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from client_sdk import answers
from client_sdk.answers import Coincidence
from client_sdk.protocol import Alert
from client_sdk.vocabulary import RunState
from server.coincidence import informed
from server.models import Event, Outlier, Passage, Progress
from server.notification import AlertChange, Recipients
from server.schema import alerts, events, monitors, runs
from server.storage.alerts import alert_answer
from server.storage.coincidences import Comparison, compare, tell_alerts
from server.storage.database import LOCK_TIMEOUT, Database, insert_ignore
from server.storage.id_list import padded
from server.storage.outbox import enqueue
from server.storage.outliers import Observation


@dataclass(frozen=True, kw_only=True)
class StoredDetectorState:
    """Saved state of a run's detectors, from which a follower resumes."""

    rank: int
    position: int
    """Id of the last segment that the detectors have read."""
    state: bytes
    """Encoded state; `pipeline.detector_state` owns its format."""
    revision: int = 0
    """Number of saves, so that only one of two followers of the same run can save."""
    due_at: float | None = None
    """Unix time at which silence of the run may cause an alert, or None for never."""
    passage: Passage | None = None
    """Steps that the detectors have read, over all attempts; None before the first loss."""


@dataclass(frozen=True, kw_only=True)
class DetectorStateSave:
    """State of one run's detectors, and everything that the detectors found since the previous save."""

    run_id: str
    before: int | None
    """Revision that this save replaces, or None for the first save."""
    after: StoredDetectorState
    progress: Progress
    changed: Sequence[Alert]
    """Alerts that are new or have changed."""
    happened: Sequence[Event]
    """Events that are new."""
    now: float
    """Time of the save, Unix seconds."""
    project: str | None = None
    """Project whose runs are compared with this one; None compares with none."""
    outliers: Sequence[Outlier] = ()
    """Outliers of the loss and marks that are new."""


@dataclass(frozen=True, kw_only=True)
class DetectorStateSaveResult:
    """Result of a save."""

    alerts: Sequence[answers.Alert] | None
    """Changed alerts as the API shows them. None means that nothing was stored, because a follower on another server
    has saved meanwhile. Alerts of other runs follow if something else is said about their step now.
    """


_PASSAGE = tuple(Passage.__struct_fields__)
LOCK_MONITORS = (
    select(monitors.c.run_id, monitors.c.revision, *(monitors.c[name] for name in _PASSAGE))
    .where(monitors.c.run_id.in_(bindparam("ids", expanding=True)))
    .order_by(monitors.c.run_id)
    .with_for_update(key_share=True)
)
_STATE = ("rank", "position", "state", "saved_at", "revision", "due_at", *_PASSAGE)
_REPLACE = (
    update(monitors)
    .where(monitors.c.run_id == bindparam("of_run"))
    .values({name: bindparam(f"to_{name}") for name in _STATE})
)
_PROGRESS = (
    *("step_rate", "loss", "lr", "stage", "stage_reason", "loss_name", "loss_since", "stability_ratio", "sparkline"),
)
_SHOW = (
    update(runs)
    .where(runs.c.id == bindparam("of_run"))
    .values({name: bindparam(f"to_{name}", type_=runs.c[name].type) for name in _PROGRESS})
)


class DetectorStateStore:
    """Stores detector states, alerts and events."""

    def __init__(self, database: Database, recipients: Recipients) -> None:
        """Create a store. ``recipients`` decides who is notified of changed alerts."""
        self._database = database
        self._recipients = recipients

    async def load(self, run_id: str) -> StoredDetectorState | None:
        """Return the state of a run's detectors, or None if there is none yet."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(monitors).where(monitors.c.run_id == run_id))).first()
            if row is None:
                return None
            return StoredDetectorState(
                rank=row.rank,
                position=row.position,
                state=row.state,
                revision=row.revision,
                due_at=row.due_at,
                passage=_passage(row),
            )

    async def due(self, now: float, limit: int) -> list[str]:
        """Return at most ``limit`` active runs whose silence may cause an alert by ``now``."""
        query = (
            select(monitors.c.run_id)
            .join(runs, runs.c.id == monitors.c.run_id)
            .where(monitors.c.due_at <= now, runs.c.state.in_([RunState.RUNNING, RunState.STALE]))
            .order_by(monitors.c.due_at)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def save(self, saves: Sequence[DetectorStateSave]) -> list[DetectorStateSaveResult]:
        """Store the states of several runs in one transaction, and return the result for each. Each run may occur once.

        Raises `DatabaseError`, in which case nothing is stored.
        """
        patience = LOCK_TIMEOUT if len(saves) > 1 else None
        async with self._database.write(patience=patience) as connection:
            ids = sorted(save.run_id for save in saves)
            found = {row.run_id: row for row in await connection.execute(LOCK_MONITORS, {"ids": padded(ids)})}
            stored: dict[str, DetectorStateSave] = {}
            for save in sorted(saves, key=lambda save: save.run_id):
                if save.before is None and save.run_id not in found:
                    row = {"run_id": save.run_id, **_state(save)}
                    made = await connection.execute(insert_ignore(connection, monitors).values(**row))
                    if made.rowcount == 1:
                        stored[save.run_id] = save
                elif save.run_id in found and found[save.run_id].revision == save.before:
                    stored[save.run_id] = save
            moved = [save for save in stored.values() if save.before is not None]
            if moved:
                await connection.execute(_REPLACE, [_parameters(save.run_id, _state(save)) for save in moved])
            if stored:
                rows = [_parameters(save.run_id, _shown(save.progress)) for save in stored.values()]
                await connection.execute(_SHOW, rows)
            observations = [_observation(save, found.get(save.run_id)) for save in stored.values()]
            compared = await compare(connection, observations)
            alerts_of = {
                save.run_id: await _store_findings(connection, save, compared, self._recipients)
                for save in stored.values()
            }
            if compared.changed:
                shown = {alert.id for own in alerts_of.values() for alert in own}
                told = await tell_alerts(connection, compared, shown)
                alerts_of[min(stored)] += told
        return [DetectorStateSaveResult(alerts=alerts_of.get(save.run_id)) for save in saves]


def _observation(save: DetectorStateSave, before: Row[Any] | None) -> Observation:
    """Return what a save adds to the comparison of the project's runs."""
    if save.project is None:
        return Observation(run_id=save.run_id, project="", before=None, after=None, outliers=(), now=save.now)
    return Observation(
        run_id=save.run_id,
        project=save.project,
        before=None if before is None else _passage(before),
        after=save.after.passage,
        outliers=save.outliers,
        named=[key for alert in save.changed if (key := _outlier_of(alert)) is not None],
        now=save.now,
    )


def _outlier_of(alert: Alert) -> tuple[int, int] | None:
    """Return attempt and step of the outlier that an alert is about, or None."""
    step = alert.evidence.get("outlier_step")
    return (alert.attempt, step) if isinstance(step, int) else None


def _passage(row: Row[Any]) -> Passage | None:
    if row.first_step is None:
        return None
    return Passage(**{name: getattr(row, name) for name in _PASSAGE})


def _state(save: DetectorStateSave) -> dict[str, Any]:
    passage = save.after.passage
    passed = {name: None if passage is None else getattr(passage, name) for name in _PASSAGE}
    values = {name: getattr(save.after, name) for name in _STATE if name not in ("saved_at", *_PASSAGE)}
    return {**values, **passed, "saved_at": save.now}


def _shown(progress: Progress) -> dict[str, Any]:
    return {name: getattr(progress, name) for name in _PROGRESS}


def _parameters(run_id: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"of_run": run_id, **{f"to_{name}": value for name, value in values.items()}}


async def _store_findings(
    connection: AsyncConnection, save: DetectorStateSave, compared: Comparison, recipients: Recipients
) -> list[answers.Alert]:
    """Store new events and changed alerts, and queue the notifications about them. Most saves have none of these."""
    if save.happened:
        await connection.execute(
            events.insert(),
            [
                {
                    "run_id": save.run_id,
                    "rank": save.after.rank,
                    "attempt": event.attempt,
                    "step": event.step,
                    "kind": event.kind,
                    "detail": dict(event.detail),
                    "created_at": save.now,
                }
                for event in save.happened
            ],
        )
    if not save.changed:
        return []
    query = select(alerts.c.id, alerts.c.level, alerts.c.state)
    stored_before = await connection.execute(query.where(alerts.c.id.in_([alert.id for alert in save.changed])))
    before = {row.id: (row.level, row.state) for row in stored_before}
    shown = []
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    evidence: dict[str, Coincidence | None] = {}
    for alert in save.changed:
        key = _outlier_of(alert)
        said = evidence[alert.id] = None if key is None else compared.known.get((save.run_id, *key))
        held = {
            "level": alert.level,
            "state": alert.state,
            "closed_at": alert.closed_at,
            "body": msgspec.to_builtins(alert),
            "outlier_step": None if key is None else key[1],
            "coincidence": None if said is None else msgspec.to_builtins(said),
        }
        insert = dialect.insert(alerts).values(
            id=alert.id,
            run_id=save.run_id,
            kind=alert.kind,
            attempt=alert.attempt,
            step=alert.step,
            opened_at=alert.opened_at,
            **held,
        )
        stored = await connection.execute(
            insert.on_conflict_do_update(index_elements=[alerts.c.id], set_=held).returning(alerts)
        )
        shown.append(alert_answer(stored.one()))
    changes = []
    for alert in save.changed:
        level, state = before.get(alert.id, (None, None))
        informed_alert = informed(alert, evidence[alert.id])
        changes.append(AlertChange(alert=informed_alert, level_before=level, state_before=state))
    await enqueue(connection, save.run_id, changes, recipients, save.now)
    return shown
