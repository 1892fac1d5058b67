"""Live messages, and their form on the way to a subscriber."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

RESYNC: Final = "resync"
"""Type of a control message that asks the subscriber to read everything again, because messages are missing."""
DEGRADED: Final = "degraded"
"""Type of a control message after which only messages of this server arrive."""
RESTORED: Final = "restored"
"""Type of a control message after which messages of all servers arrive again."""

CONTROL_TYPES: Final = frozenset({"writer"})
"""Types of messages between servers, which no viewer receives."""
BROADCAST_TYPES: Final = frozenset({"alert"}) | CONTROL_TYPES
"""Types of messages that every server receives for every run, because training processes connected to it may be
affected. They are rare, unlike all others.
"""


@dataclass(frozen=True, kw_only=True)
class LiveMessage:
    """Message about a run that the broker sends to subscribers. ``body`` is JSON with a ``type``, as the live socket
    sends it.
    """

    run_id: str
    project: str
    body: Mapping[str, Any]

    @property
    def type(self) -> str:
        """Type of the message, for example "run" or "alert"."""
        kind: str = self.body["type"]
        return kind


@dataclass(frozen=True, kw_only=True)
class QueuedMessage:
    """Live message, or control message of the connection, that waits for a subscriber."""

    type: str
    cursor: str
    """Cursor that continues after this message, on any server. Opaque; it contains digits, letters and hyphens."""
    payload: bytes
    """Body as JSON, a non-empty object, encoded once for all subscribers."""

    @property
    def frame(self) -> str:
        """Body together with the cursor, as the live socket sends it.

        >>> QueuedMessage(type="run", cursor="a-1", payload=b'{"type":"run"}').frame
        '{"type":"run","cursor":"a-1"}'
        """
        return f'{self.payload[:-1].decode()},"cursor":"{self.cursor}"}}'

    def body(self) -> dict[str, Any]:
        """Return the decoded body."""
        decoded: dict[str, Any] = msgspec.json.decode(self.payload)
        return decoded


def control_message(kind: str, cursor: str) -> QueuedMessage:
    """Return a control message as it is queued: `RESYNC`, `DEGRADED` or `RESTORED`."""
    return QueuedMessage(type=kind, cursor=cursor, payload=msgspec.json.encode({"type": kind}))


@dataclass(frozen=True, kw_only=True)
class Interest:
    """Messages that a subscriber wants to receive."""

    run_ids: frozenset[str] | None
    """Ids of the runs, or None for all runs."""
    project: str | None
    """Name of the project, or None for all projects."""
    types: frozenset[str] | None
    """Types of the messages, or None for all types except `CONTROL_TYPES`."""

    def covers(self, run_id: str, project: str, kind: str) -> bool:
        """Return whether the subscriber wants a message of this run, project and type."""
        return (
            (kind not in CONTROL_TYPES if self.types is None else kind in self.types)
            and (self.run_ids is None or run_id in self.run_ids)
            and (self.project is None or project == self.project)
        )
