"""The audit of runs: how often its checks ran, what they found, and which findings a project has dismissed.

Reports arrive with the records of a writer and are stored in the transaction that commits these, so that a resend
changes nothing. A finding is stored once for each run and check.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from client_sdk import answers
from client_sdk.audit_checks import AUDIT_CHECKS
from server.models import Event, EventKind
from server.pyramid.drafts import AuditDraft
from server.schema import audit_dismissals, audit_findings, audit_runs, runs
from server.storage.database import Database, insert_ignore
from server.storage.runs import Registration

_MOVE = (
    update(audit_runs)
    .where(
        audit_runs.c.run_id == bindparam("of_run"),
        audit_runs.c.writer_id == bindparam("of_writer"),
        audit_runs.c.name == bindparam("of_name"),
    )
    .values(runs=bindparam("to_runs"), last_step=bindparam("to_step"))
)


async def store_audits(
    connection: AsyncConnection, writer: Registration, reports: Sequence[tuple[int, AuditDraft]], now: float
) -> list[Event]:
    """Store the reports of one writer, each with its attempt, and return the events of findings that are new."""
    if not reports:
        return []
    counts: dict[str, tuple[int, int]] = {}
    for _, report in reports:
        counts |= {name: (count, report.step) for name, count in report.audit.runs.items()}
    if counts:
        own = {"run_id": writer.run_id, "writer_id": writer.writer_id}
        rows = [{**own, "name": name, "runs": n, "last_step": step} for name, (n, step) in sorted(counts.items())]
        await connection.execute(insert_ignore(connection, audit_runs), rows)
        await connection.execute(
            _MOVE,
            [
                {
                    "of_run": row["run_id"], "of_writer": row["writer_id"], "of_name": row["name"],
                    "to_runs": row["runs"], "to_step": row["last_step"],
                }
                for row in rows
            ],
        )  # fmt: skip
    happened = []
    for attempt, report in reports:
        for finding in report.audit.findings:
            made = await connection.execute(
                insert_ignore(connection, audit_findings).values(
                    run_id=writer.run_id,
                    name=finding.check,
                    rank=writer.rank,
                    attempt=attempt,
                    step=report.step if finding.step is None else finding.step,
                    message=finding.message,
                    layers=list(finding.layers),
                    evidence=finding.evidence,
                    found_at=now,
                )
            )
            if made.rowcount == 1:
                detail = {"check": finding.check, "message": finding.message}
                step = report.step if finding.step is None else finding.step
                happened.append(Event(step=step, kind=EventKind.AUDIT, attempt=attempt, detail=detail))
    return happened


class AuditStore:
    """Reads the audit of runs, and stores what a project dismisses."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_run(self, run_id: str) -> answers.RunAudit:
        """Return what was checked in a run, when last, and what was found, in the order in which it was."""
        counted = (
            select(
                audit_runs.c.name,
                func.sum(audit_runs.c.runs).label("runs"),
                func.max(audit_runs.c.last_step).label("last_step"),
            )
            .where(audit_runs.c.run_id == run_id)
            .group_by(audit_runs.c.name)
        )
        found = (
            select(audit_findings, audit_dismissals.c.dismissed_at)
            .join(runs, runs.c.id == audit_findings.c.run_id)
            .outerjoin(
                audit_dismissals,
                and_(audit_dismissals.c.project == runs.c.project, audit_dismissals.c.name == audit_findings.c.name),
            )
            .where(audit_findings.c.run_id == run_id)
            .order_by(audit_findings.c.found_at, audit_findings.c.step, audit_findings.c.name)
        )
        async with self._database.read() as connection:
            counts = {row.name: row for row in await connection.execute(counted)}
            rows = (await connection.execute(found)).all()
        order = {name: at for at, name in enumerate(AUDIT_CHECKS)}
        names = sorted(counts, key=lambda name: (order.get(name, len(order)), name))
        return answers.RunAudit(
            checks=tuple(
                answers.AuditCheckRuns.of(name, int(counts[name].runs), counts[name].last_step) for name in names
            ),
            findings=tuple(
                answers.AuditFinding.of(
                    row.name,
                    message=row.message,
                    step=row.step,
                    attempt=row.attempt,
                    layers=tuple(row.layers),
                    evidence=row.evidence,
                    found_at=row.found_at,
                    dismissed=row.dismissed_at is not None,
                )
                for row in rows
            ),
        )

    async def dismissed(self, project: str) -> list[str]:
        """Return the checks whose findings a project has dismissed."""
        query = select(audit_dismissals.c.name).where(audit_dismissals.c.project == project)
        async with self._database.read() as connection:
            return list((await connection.execute(query.order_by(audit_dismissals.c.name))).scalars())

    async def dismiss(self, project: str, name: str, now: float) -> None:
        """Dismiss the findings of a check in a project, also those to come. May be called again."""
        async with self._database.write() as connection:
            await connection.execute(
                insert_ignore(connection, audit_dismissals).values(project=project, name=name, dismissed_at=now)
            )

    async def restore(self, project: str, name: str) -> None:
        """Show the findings of a check in a project again."""
        async with self._database.write() as connection:
            await connection.execute(
                delete(audit_dismissals).where(audit_dismissals.c.project == project, audit_dismissals.c.name == name)
            )
