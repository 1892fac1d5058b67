"""Alert rules that users have written, in their order."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
from sqlalchemy import delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from client_sdk.vocabulary import AlertKind, AlertState, RunState
from server.errors import RuleFieldError
from server.log_actions import LogAction
from server.rule import Rule, RuleSet
from server.schema import alerts, monitors, rules, runs
from server.storage.database import Database

logger = logging.getLogger(__name__)


class RuleStore:
    """Stores alert rules."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> RuleSet:
        """Return every rule of every project. A rule that this version cannot read is left out and logged."""
        async with self._database.read() as connection:
            return RuleSet(rules=tuple(await _read(connection)))

    async def replace(self, wanted: Sequence[Rule], now: float, *, removed: Sequence[str] = ()) -> RuleSet:
        """Store rules, delete those whose ids are in ``removed``, and return all rules.

        A rule replaces the one with the same id; a new one is appended.
        """
        async with self._database.write() as connection:
            before = {rule.id: rule for rule in await _read(connection) if rule.id not in removed}
            after = [*(before | {rule.id: rule for rule in wanted}).values()]
            await connection.execute(delete(rules))
            if after:
                await connection.execute(
                    rules.insert(),
                    [
                        {
                            "id": rule.id,
                            "position": position,
                            "project": rule.project,
                            "body": rule.to_json(),
                            "updated_at": now,
                        }
                        for position, rule in enumerate(after)
                    ],
                )
            # Wake the followers of running runs, and of runs with an alert that may end with its rule, even if no data
            # arrives.
            alerted = select(alerts.c.run_id).where(
                alerts.c.kind == AlertKind.CUSTOM_RULE, alerts.c.state == AlertState.OPEN
            )
            running = select(runs.c.id).where(runs.c.state == RunState.RUNNING)
            await connection.execute(
                update(monitors)
                .where(or_(monitors.c.run_id.in_(running), monitors.c.run_id.in_(alerted)))
                .values(due_at=0.0)
            )
        return RuleSet(rules=tuple(after))


async def _read(connection: AsyncConnection) -> list[Rule]:
    found = []
    for row in await connection.execute(select(rules.c.id, rules.c.body).order_by(rules.c.position, rules.c.id)):
        try:
            found.append(Rule.from_json(row.body))
        except (RuleFieldError, msgspec.ValidationError) as error:
            logger.error("rule %s cannot be read: %s", row.id, error, extra={"action": LogAction.RULE_UNREADABLE})
    return found
