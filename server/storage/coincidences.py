"""Evidence of other runs about outliers, kept up to date in the transactions that store detector states.

`compare` stores the new outliers of the saved runs, judges them, and judges again the outliers of other runs that
change with them: those at the same step, and those whose step the saved runs have passed since. The evidence is stored
with the outlier, so each change happens exactly once, whichever server saves.

Two saves of one project could otherwise miss each other's rows. On Postgres, a save with new outliers therefore
excludes the other saves of its project (an advisory lock, which saves without outliers share). Rows of outliers are
locked in the order of their ids, and before any alert. SQLite has one writer at a time.

The cost of a save without an outlier is one query of a partial index: outliers that `MAX_RUNS` runs have passed are no
longer watched.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from sqlalchemy import Row, bindparam, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from client_sdk import answers
from client_sdk.answers import Coincidence
from server.coincidence import (
    MAX_RUNS,
    Candidate,
    Surroundings,
    coinciding,
    is_same_step,
    is_very_large,
    judged,
    more_passed,
    pattern_decides,
    reads_other_data,
)
from server.models import EventKind, Outlier
from server.schema import alerts, events, monitors, outliers
from server.storage.alerts import alert_answer
from server.storage.id_list import padded
from server.storage.outliers import (
    Observation,
    common,
    have_passed,
    insert,
    locked,
    marks,
    near,
    passed,
    surroundings,
    to_outlier,
)

Key = tuple[str, int, int]
"""Run id, attempt and step of an outlier."""


@dataclass(kw_only=True)
class Comparison:
    """Evidence after a comparison."""

    known: dict[Key, Coincidence | None] = field(default_factory=dict)
    """Evidence of other runs about each outlier that was new, named or changed."""
    changed: set[Key] = field(default_factory=set)
    """Outliers whose evidence has changed."""


async def compare(connection: AsyncConnection, observations: Sequence[Observation]) -> Comparison:
    """Store the outliers of saved runs, and update the evidence about everything that they change."""
    result = Comparison()
    worked = [one for one in observations if not one.is_empty]
    if not worked:
        return result
    await _exclude_others(connection, worked)
    await insert(connection, worked)
    found = [
        row
        for one in worked
        for outlier in one.outliers
        if outlier.deviations > 0
        for row in await near(connection, one.project, one.run_id, outlier)
        if is_same_step(outlier, to_outlier(row))
    ]
    at_same_step = {row.id for row in found}
    by_runs = await passed(connection, worked)
    rows = {row.id: row for row in await locked(connection, at_same_step | by_runs.keys(), worked)}
    new = {(one.run_id, outlier.attempt, outlier.step) for one in worked for outlier in one.outliers}
    updates: list[tuple[Row[Any], Coincidence | None]] = []
    compared = {rows[row_id].run_id for row_id in by_runs if row_id in rows}
    known = await marks(connection, compared.union(*by_runs.values()))
    for row in rows.values():
        evidence = result.known[_key(row)] = stored_coincidence(row)
        if _key(row) in new or row.id in at_same_step:
            if evidence is None or evidence.same < MAX_RUNS:
                updates.append((row, await _judge(connection, row)))
        elif row.id in by_runs:
            others = by_runs[row.id]
            other_data = sum(reads_other_data(known[row.run_id], known[run_id], row.step) for run_id in others)
            updates.append((row, more_passed(to_outlier(row), evidence, len(others), other_data)))
    await _store(connection, updates, result)
    return result


async def tell_alerts(
    connection: AsyncConnection, compared: Comparison, leave_out: Collection[str]
) -> list[answers.Alert]:
    """Store changed evidence with the alerts about these outliers, and return the alerts, without some of them."""
    run_ids = padded(sorted({run_id for run_id, _, _ in compared.changed}))
    query = select(alerts.c.id, alerts.c.run_id, alerts.c.attempt, alerts.c.outlier_step).where(
        alerts.c.run_id.in_(run_ids), alerts.c.outlier_step.is_not(None)
    )
    told = []
    for row in (await connection.execute(query.order_by(alerts.c.id))).all():
        key = (row.run_id, row.attempt, row.outlier_step)
        if key in compared.changed and row.id not in leave_out:
            change = update(alerts).where(alerts.c.id == row.id).values(coincidence=_document(compared.known[key]))
            told.append(alert_answer((await connection.execute(change.returning(alerts))).one()))
    return told


def stored_coincidence(row: Row[Any]) -> Coincidence | None:
    """Return the evidence of a row of the tables `outliers` or `alerts`."""
    return None if row.coincidence is None else msgspec.convert(row.coincidence, Coincidence)


async def _exclude_others(connection: AsyncConnection, worked: Sequence[Observation]) -> None:
    """Let saves of the same projects wait for each other if one of them has new outliers."""
    if connection.dialect.name == "sqlite":
        return
    has_new: dict[int, bool] = {}
    for one in worked:
        lock = zlib.crc32(f"outliers of {one.project}".encode())
        has_new[lock] = has_new.get(lock, False) or bool(one.outliers)
    for lock in sorted(has_new):
        await connection.execute(_EXCLUSIVE if has_new[lock] else _SHARED, {"lock": lock})


_EXCLUSIVE: Final = text("SELECT pg_advisory_xact_lock(:lock)")
_SHARED: Final = text("SELECT pg_advisory_xact_lock_shared(:lock)")


async def _judge(connection: AsyncConnection, row: Row[Any]) -> Coincidence | None:
    """Return the evidence about an outlier from scratch."""
    mine = to_outlier(row)
    candidates = [
        Candidate(run_id=other.run_id, name=other.name, outlier=to_outlier(other))
        for other in await near(connection, row.project, row.run_id, mine)
        if is_same_step(mine, to_outlier(other))
    ]
    if mine.is_quiet and all(other.outlier.is_quiet for other in candidates):
        return None
    around = Surroundings()
    if is_very_large(mine) and any(is_very_large(other.outlier) for other in candidates):
        around = await surroundings(connection, row.project, row.run_id, mine)
    candidates = await _with_common(connection, row.run_id, mine, candidates)
    same = coinciding(mine, candidates, around)
    showing = {other.run_id for other in candidates}
    without = await have_passed(connection, row.project, row.run_id, mine, showing)
    known = await marks(connection, {row.run_id, *without}) if without else {}
    other_data = sum(reads_other_data(known[row.run_id], known[run_id], mine.step) for run_id in without)
    return judged(mine, same, len(without), other_data)


async def _with_common(
    connection: AsyncConnection, run_id: str, mine: Outlier, candidates: Sequence[Candidate]
) -> list[Candidate]:
    """Count the common outliers with the candidates whose pattern does not show that the data are the same."""
    unclear = [one.run_id for one in candidates if not pattern_decides(mine, one.outlier)][:MAX_RUNS]
    if not unclear:
        return list(candidates)
    counts = await common(connection, run_id, unclear, mine)
    told = []
    for one in candidates:
        shared, expected = counts.get(one.run_id, (0, 0.0))
        told.append(Candidate(run_id=one.run_id, name=one.name, outlier=one.outlier, common=shared, expected=expected))
    return told


async def _store(
    connection: AsyncConnection, updates: Sequence[tuple[Row[Any], Coincidence | None]], result: Comparison
) -> None:
    """Store evidence that has changed, and the events of quiet outliers that other runs confirm."""
    changed, confirmed = [], []
    for row, evidence in updates:
        before = stored_coincidence(row)
        if evidence == before:
            continue
        is_settled = evidence is not None and evidence.passed >= MAX_RUNS
        changed.append(
            {
                "of": row.id,
                "to": _document(evidence),
                "watched": not is_settled and (not row.is_quiet or (evidence is not None and evidence.same > 0)),
            }
        )
        result.known[_key(row)] = evidence
        result.changed.add(_key(row))
        if row.is_quiet and before is None and evidence is not None and evidence.same:
            confirmed.append(row)
    if changed:
        await connection.execute(_UPDATE, changed)
    if confirmed:
        await _store_events(connection, confirmed)


_UPDATE: Final = (
    update(outliers)
    .where(outliers.c.id == bindparam("of"))
    .values(
        coincidence=bindparam("to", type_=outliers.c.coincidence.type),
        is_watched=bindparam("watched", type_=outliers.c.is_watched.type),
    )
)


async def _store_events(connection: AsyncConnection, confirmed: Sequence[Row[Any]]) -> None:
    ids = padded(sorted({row.run_id for row in confirmed}))
    found = await connection.execute(
        select(monitors.c.run_id, monitors.c.rank, monitors.c.saved_at).where(monitors.c.run_id.in_(ids))
    )
    saved = {row.run_id: row for row in found}
    rows = [
        {
            "run_id": row.run_id,
            "rank": saved[row.run_id].rank,
            "attempt": row.attempt,
            "step": row.step,
            "kind": EventKind.LOSS_OUTLIER,
            "detail": {"loss": row.loss, "baseline": row.baseline, "deviations": row.deviations},
            "created_at": saved[row.run_id].saved_at,
        }
        for row in confirmed
        if row.run_id in saved
    ]
    await connection.execute(events.insert(), rows)


def _key(row: Row[Any]) -> Key:
    return row.run_id, row.attempt, row.step


def _document(evidence: Coincidence | None) -> Any:
    return None if evidence is None else msgspec.to_builtins(evidence)
