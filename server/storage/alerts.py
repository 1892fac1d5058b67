"""Alerts as people see them: the findings of the detectors, acknowledgements and silences."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import ColumnElement, Row, and_, func, or_, select, update

from client_sdk import answers
from server.coincidence import informed
from server.models import AlertKind, AlertLevel, AlertState
from server.schema import alerts, runs
from server.storage.database import Database
from server.storage.id_list import padded

MAX_RECENT = 64
"""Maximum number of open and of closed alerts that `AlertStore.recent` returns; more at once would help nobody."""
CAME = ("hit", "early", "late")
"""Outcomes of predictions whose spike came, within the predicted range or not."""
LEADS = 10_000
PAGE = 256


class AlertStore:
    """Reads alerts, and stores acknowledgements and silences. `storage.detector_states` stores the alerts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(
        self,
        *,
        run_ids: Sequence[str] | None = None,
        projects: Sequence[str] | None = None,
        states: Sequence[str] | None = None,
        levels: Sequence[str] | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 1_000,
    ) -> list[answers.Alert]:
        """Return the newest ``limit`` alerts that match, newest first.

        Each list selects alerts with one of its values; None selects all.
        """
        query = select(alerts).order_by(alerts.c.opened_at.desc(), alerts.c.step.desc(), alerts.c.id).limit(limit)
        if run_ids is not None:
            query = query.where(alerts.c.run_id.in_(padded(run_ids)))
        if projects is not None:
            query = query.where(_of_projects(projects))
        if states is not None:
            query = query.where(or_(*map(_shown_as, states)))
        if levels is not None:
            query = query.where(alerts.c.level.in_(levels))
        if kinds is not None:
            query = query.where(alerts.c.kind.in_(kinds))
        async with self._database.read() as connection:
            return [alert_answer(row) for row in await connection.execute(query)]

    async def count_open(self) -> dict[tuple[str, str], int]:
        """Return the number of open alerts by level and kind; acknowledged ones are open too."""
        query = (
            select(alerts.c.level, alerts.c.kind, func.count())
            .where(alerts.c.state == AlertState.OPEN)
            .group_by(alerts.c.level, alerts.c.kind)
        )
        async with self._database.read() as connection:
            return {(level, kind): number for level, kind, number in await connection.execute(query)}

    async def walk(self, run_id: str) -> AsyncGenerator[answers.Alert, None]:
        """Yield every alert of a run, in the order in which they opened."""
        reached: tuple[float, str] | None = None
        while True:
            query = select(alerts).where(alerts.c.run_id == run_id).order_by(alerts.c.opened_at, alerts.c.id)
            if reached is not None:
                opened_at, alert_id = reached
                later = and_(alerts.c.opened_at == opened_at, alerts.c.id > alert_id)
                query = query.where(alerts.c.opened_at >= opened_at, or_(alerts.c.opened_at > opened_at, later))
            async with self._database.read() as connection:
                rows = (await connection.execute(query.limit(PAGE))).all()
            for row in rows:
                yield alert_answer(row)
            if len(rows) < PAGE:
                return
            reached = (rows[-1].opened_at, rows[-1].id)

    async def recent(self, run_id: str) -> list[answers.Alert]:
        """Return the open alerts of a run and those closed last, in the order in which they opened.

        A training process that was disconnected may have missed these.
        """
        of_run = select(alerts).where(alerts.c.run_id == run_id)
        is_open = alerts.c.state == AlertState.OPEN
        queries = (
            of_run.where(is_open).order_by(alerts.c.opened_at.desc()).limit(MAX_RECENT),
            of_run.where(~is_open).order_by(alerts.c.closed_at.desc()).limit(MAX_RECENT),
        )
        async with self._database.read() as connection:
            found = [alert_answer(row) for query in queries for row in await connection.execute(query)]
        return sorted(found, key=lambda alert: (alert.opened_at, alert.step, alert.id))

    async def get(self, alert_id: str) -> answers.Alert | None:
        """Return an alert, None where there is none with this id."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(alerts).where(alerts.c.id == alert_id))).first()
            return None if row is None else alert_answer(row)

    async def precision(self, *, projects: Sequence[str] | None) -> answers.Precision:
        """Count how the predictions above the level watch were settled, and measure their lead over the spike.

        The lead is that of the newest `LEADS` predictions whose spike came, early and late ones included. It counts
        from the warning, also for alerts that were stored when it still counted from the first signs.
        """
        result = alerts.c.body["outcome"]["result"].as_string()
        came = alerts.c.body["outcome"]["step"].as_integer()
        warned = alerts.c.body["evidence"]["warned_at_step"].as_integer()
        lead = func.coalesce(came - warned, alerts.c.body["outcome"]["lead"].as_integer())
        predictions = and_(alerts.c.kind == AlertKind.SPIKE_PREDICTED, alerts.c.level != AlertLevel.WATCH)
        if projects is not None:
            predictions = and_(predictions, _of_projects(projects))
        counted = select(alerts.c.state, result, func.count()).where(predictions).group_by(alerts.c.state, result)
        led = (
            select(lead)
            .where(predictions, result.in_(CAME))
            .order_by(alerts.c.opened_at.desc(), alerts.c.id)
            .limit(LEADS)
        )
        async with self._database.snapshot() as connection:
            counts = [(state, outcome, number) for state, outcome, number in await connection.execute(counted)]
            leads = [value for value in (await connection.execute(led)).scalars() if value is not None]
        by_result = {name: sum(number for _, outcome, number in counts if outcome == name) for name in (*CAME, "false")}
        settled = sum(by_result.values())
        p50, p10, p90 = (float(np.percentile(leads, share)) if leads else None for share in (50, 10, 90))
        return answers.Precision(
            settled=settled,
            **by_result,
            open=sum(number for state, _, number in counts if state == AlertState.OPEN),
            unsettled=sum(n for state, outcome, n in counts if state != AlertState.OPEN and outcome is None),
            precision=None if settled == 0 else (settled - by_result["false"]) / settled,
            lead_steps=answers.Lead(count=len(leads), median=p50, p10=p10, p90=p90),
        )

    async def acknowledge(self, alert_id: str, now: float) -> answers.Alert | None:
        """Acknowledge an alert and return it, None where it does not exist. The first acknowledgement counts."""
        async with self._database.write() as connection:
            await connection.execute(
                update(alerts)
                .where(alerts.c.id == alert_id, alerts.c.acknowledged_at.is_(None))
                .values(acknowledged_at=now)
            )
        return await self.get(alert_id)

    async def silence(self, alert_id: str, until: float) -> answers.Alert | None:
        """Send no notifications of an alert before ``until``, and return the alert, None where it does not exist."""
        async with self._database.write() as connection:
            await connection.execute(update(alerts).where(alerts.c.id == alert_id).values(silenced_until=until))
        return await self.get(alert_id)


def alert_answer(row: Row[Any]) -> answers.Alert:
    """Return the alert of a row of the table `alerts`."""
    state = shown_state(row.state, row.acknowledged_at)
    others = {
        "acknowledged_at": row.acknowledged_at,
        "silenced_until": row.silenced_until,
        "coincidence": row.coincidence,
    }
    alert = msgspec.convert({**row.body, **_redefined(row.body), "state": state, **others}, answers.Alert)
    return informed(alert, alert.coincidence)


def _redefined(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outcome of an alert that was stored when the lead still counted from the first signs."""
    outcome, warned = body.get("outcome"), body["evidence"].get("warned_at_step")
    if outcome is None or outcome.get("step") is None or warned is None:
        return {}
    if outcome.get("first_seen_lead") is not None:
        return {}
    first_seen_lead = outcome["step"] - body["step"]
    return {"outcome": {**outcome, "lead": outcome["step"] - warned, "first_seen_lead": first_seen_lead}}


def shown_state(state: str, acknowledged_at: float | None) -> str:
    """Return the state that people see: an open alert that somebody has acknowledged is acknowledged."""
    if state == AlertState.OPEN and acknowledged_at is not None:
        return AlertState.ACKNOWLEDGED
    return state


def _of_projects(projects: Sequence[str]) -> ColumnElement[bool]:
    return alerts.c.run_id.in_(select(runs.c.id).where(runs.c.project.in_(padded(projects))))


def _shown_as(state: str) -> ColumnElement[bool]:
    if state == AlertState.ACKNOWLEDGED:
        return and_(alerts.c.state == AlertState.OPEN, alerts.c.acknowledged_at.is_not(None))
    if state == AlertState.OPEN:
        return and_(alerts.c.state == AlertState.OPEN, alerts.c.acknowledged_at.is_(None))
    return alerts.c.state == state
