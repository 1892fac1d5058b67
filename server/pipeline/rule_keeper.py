"""The alert rules that this server applies, and the clock for rules about missing data.

Every few seconds each server checks whether rules were changed through another server and whether a run has been silent
for too long. All servers check; the transaction that saves a detector state decides which of them reports.
"""

from __future__ import annotations

from collections.abc import Callable

from server.rule import RuleSet
from server.storage.detector_states import DetectorStateStore
from server.storage.rules import RuleStore

MAX_DUE = 50
"""Runs that one check wakes; the others wait for the next check."""
MAX_MISSED_LOOKS = 3.0
"""Intervals between two checks beyond which this server may have missed data, so that silence proves nothing."""


class RuleKeeper:
    """Holds the current rules. Used from the event loop only."""

    def __init__(
        self, rules: RuleStore, states: DetectorStateStore, *, clock: Callable[[], float], look_every: float
    ) -> None:
        """``look_every`` is the interval in seconds at which `look` is called."""
        self._rules = rules
        self._states = states
        self._clock = clock
        self._max_pause = MAX_MISSED_LOOKS * look_every
        self._looked_at = clock()
        self.current = RuleSet()
        """Rules as they were read last."""
        self.since = self._looked_at
        """Unix time since which this server has received everything that arrived."""

    async def refresh(self) -> bool:
        """Read the rules and return whether they have changed. Raises `DatabaseError`."""
        found = await self._rules.all()
        changed = found.version != self.current.version
        self.current = found
        return changed

    async def look(self) -> list[str]:
        """Return the runs for which a rule about missing data may be due. Raises `DatabaseError`."""
        now = self._clock()
        due = await self._states.due(now, MAX_DUE)
        if not 0 <= now - self._looked_at <= self._max_pause:
            self.since = now  # the server or its database was unavailable
        self._looked_at = now
        return due
