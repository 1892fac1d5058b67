"""What is published, and what a subscriber gets of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

RESYNC: Final = "resync"
"""Something was missed: read everything anew."""
DEGRADED: Final = "degraded"
"""From here on only what this server publishes comes."""
RESTORED: Final = "restored"

CONTROL_TYPES: Final = frozenset({"writer"})
"""Messages between servers; no viewer gets them."""
BROADCAST_TYPES: Final = frozenset({"alert"}) | CONTROL_TYPES
"""What every server hears of every run, because training processes on it may be concerned. Rare, unlike the rest."""


@dataclass(frozen=True, kw_only=True)
class LiveMessage:
    """Something about a run; ``body`` is JSON as the live socket sends it, with its ``type``."""

    run_id: str
    project: str
    body: Mapping[str, Any]

    @property
    def type(self) -> str:
        kind: str = self.body["type"]
        return kind


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One message, or word of the connection, on its way to a subscriber."""

    type: str
    cursor: str
    """Where to go on after this one, on any server of the fleet. Opaque; digits, letters and hyphens."""
    payload: bytes
    """The body as JSON, an object that is not empty. Encoded once for all subscribers."""

    @property
    def frame(self) -> str:
        """The body with the cursor, as the live socket sends it."""
        return f'{self.payload[:-1].decode()},"cursor":"{self.cursor}"}}'

    def body(self) -> dict[str, Any]:
        decoded: dict[str, Any] = msgspec.json.decode(self.payload)
        return decoded


def control_delivery(kind: str, cursor: str) -> Delivery:
    """One of `RESYNC`, `DEGRADED` and `RESTORED`."""
    return Delivery(type=kind, cursor=cursor, payload=msgspec.json.encode({"type": kind}))


@dataclass(frozen=True, kw_only=True)
class Interest:
    """What a subscriber wants to hear."""

    run_ids: frozenset[str] | None
    """None: of all runs."""
    project: str | None
    """None: of all projects."""
    types: frozenset[str] | None
    """None: everything but `CONTROL_TYPES`."""

    def covers(self, run_id: str, project: str, kind: str) -> bool:
        return (
            (kind not in CONTROL_TYPES if self.types is None else kind in self.types)
            and (self.run_ids is None or run_id in self.run_ids)
            and (self.project is None or project == self.project)
        )
