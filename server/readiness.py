"""Whether everything that a server depends on answers: a small list of checks, each with a deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

logger = logging.getLogger(__name__)

TIMEOUT = 3.0  # seconds for each check


class Health(StrEnum):
    OK = "ok"
    DEGRADED = "degraded"
    """Something optional is away: data is stored and acknowledged all the same."""
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    ask: Callable[[], Awaitable[None]]
    """Raises where the dependency does not answer."""
    fault: str
    """What people are told then. Names no host, no file, no user: readiness is asked for without a token."""
    is_required: bool = True


class Readiness:
    def __init__(self) -> None:
        self._checks: list[Check] = []

    def add(self, check: Check) -> None:
        self._checks.append(check)

    async def look(self) -> tuple[Health, dict[str, str]]:
        """The worst of all, and "ok" or the fault for each."""
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
                "%s: %s (%s)", check.name, check.fault, error, extra={"action": "not_ready", "dependency": check.name}
            )
            return check.fault
        return None
