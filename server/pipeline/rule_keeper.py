"""The rules as this server knows them, and the clock for those about silence.

Owns the look, every few seconds, whether rules were changed through another server and whether a run has been silent
for too long. Every server looks; which of them tells is decided where a follower saves.
"""

from __future__ import annotations

from collections.abc import Callable

from server.rule import RuleSet
from server.storage.detector_states import DetectorStateStore
from server.storage.rules import RuleStore

DUE_AT_ONCE = 50  # runs that one look wakes; the others wait for the next
MISSED_LOOKS = 3.0  # intervals; after a longer pause nobody knows what would have come meanwhile


class RuleKeeper:
    """Used from the event loop alone."""

    def __init__(
        self, rules: RuleStore, monitors: DetectorStateStore, *, clock: Callable[[], float], look_every: float
    ) -> None:
        """``look_every``: seconds between two calls of `look`."""
        self._rules = rules
        self._monitors = monitors
        self._clock = clock
        self._pause = MISSED_LOOKS * look_every
        self._looked_at = clock()
        self.current = RuleSet()
        self.since = self._looked_at
        """Unix time since which this server could have heard whatever came: silence before it proves nothing."""

    async def refresh(self) -> bool:
        """Read the rules; True when they are others than before. Raises `DatabaseError`."""
        found = await self._rules.all()
        changed = found.version != self.current.version
        self.current = found
        return changed

    async def look(self) -> list[str]:
        """Runs whose silence may be worth an alert. Raises `DatabaseError`."""
        now = self._clock()
        due = await self._monitors.due(now, DUE_AT_ONCE)
        if not 0 <= now - self._looked_at <= self._pause:
            self.since = now  # this server or its database was away
        self._looked_at = now
        return due
