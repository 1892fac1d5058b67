"""The protocol that every detector implements."""

from __future__ import annotations

from typing import Protocol

from server.detectors.context import Context
from server.detectors.signals import Reading
from server.models import Event, Finding


class Detector(Protocol):
    """One judge of a writer's stream.

    A detector is a `msgspec.Struct` whose fields are its whole state, so that the suite saves and restores it without
    further code. It is deterministic, its memory is bounded, and NaN or infinite values never make it raise.
    """

    def update(self, reading: Reading, context: Context) -> Event | None:
        """Add one reading and return the event that happened at its step, or None.

        Readings arrive in the order of their steps. `context` holds what the detectors before this one concluded; a
        detector that others depend on adds its own conclusions.
        """

    def finding(self, reading: Reading, context: Context) -> Finding | None:
        """Return what holds true after this reading, or None. Called after every detector of the suite was updated."""
