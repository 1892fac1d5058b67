"""Readiness: a list of checks of what a server depends on, each with a deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from server.log_actions import LogAction

logger = logging.getLogger(__name__)

TIMEOUT = 3.0  # seconds for each check


class Health(StrEnum):
    """Overall result of the checks."""

    OK = "ok"
    DEGRADED = "degraded"
    """An optional dependency is unavailable; data is still stored and acknowledged."""
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check of one dependency."""

    name: str
    ask: Callable[[], Awaitable[None]]
    """Coroutine that raises if the dependency does not answer."""
    fault: str
    """Text for a failed check. Names no host, file or user, because readiness is public."""
    is_required: bool = True
    """Whether the server is unavailable, and not only degraded, if the check fails."""


class Readiness:
    """The checks of one server."""

    def __init__(self) -> None:
        self._checks: list[Check] = []

    def add(self, check: Check) -> None:
        """Add a check."""
        self._checks.append(check)

    async def look(self) -> tuple[Health, dict[str, str]]:
        """Run all checks and return the overall result, and "ok" or the fault for each check."""
        faults = await asyncio.gather(*(self._ask(check) for check in self._checks))
        health = Health.OK
        for check, fault in zip(self._checks, faults, strict=True):
            if fault is not None:
                health = Health.UNAVAILABLE if check.is_required or health is Health.UNAVAILABLE else Health.DEGRADED
        found = {check.name: fault or "ok" for check, fault in zip(self._checks, faults, strict=True)}
        return health, found

    async def _ask(self, check: Check) -> str | None:
        try:
            async with asyncio.timeout(TIMEOUT):
                await check.ask()
        except Exception as error:  # whatever a dependency raises, it is not ready
            logger.warning(
                "%s: %s (%s)",
                check.name,
                check.fault,
                error,
                extra={"action": LogAction.NOT_READY, "dependency": check.name},
            )
            return check.fault
        return None
