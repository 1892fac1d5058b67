"""Labels: the events of a log as a person marked them, read from a JSON file.

The file maps each log's path, relative to the folder of logs, to a list of events. A path may be a pattern such as
``modded-nanogpt/*``; an exact path wins over a pattern. How the labels were made is described in README.md.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

EventKind = Literal["sustained", "divergence", "drift", "restart", "transient", "unclear"]
"""Kind of a labelled event: see README.md."""
RISES: Final = frozenset({"sustained", "divergence"})
"""Kinds of events that must be found at their first record."""


class LabelledEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An event that a person marked in a log."""

    first_step: int
    """Step of the first record that shows the event."""
    up_to_step: int | None = None
    """Last step that may be taken for the first one, where the rise begins too gently for a single answer."""
    last_step: int
    """Step of the last record of the event: the loss is back, or the log ends."""
    kind: EventKind
    gradient_step: int | None = None
    """Step of the first record with an anomalous gradient norm, where that comes before the loss."""
    note: str = ""
    """Explanation for readers of the file."""
    gap: str = ""
    """Reason why the goals leave this event out for now; it is still counted and printed."""


class Labels:
    """The labelled events of all logs in a folder."""

    def __init__(self, events: Mapping[str, tuple[LabelledEvent, ...]]) -> None:
        self._events = events

    @classmethod
    def read(cls, path: Path) -> Labels:
        """Read a file of labels. Raises `OSError`, and `msgspec.DecodeError` for anything but labels."""
        return cls(msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[LabelledEvent, ...]]))

    def of(self, log: str) -> tuple[LabelledEvent, ...] | None:
        """Return the events of a log, or None if nobody has labelled it."""
        if log in self._events:
            return self._events[log]
        for pattern, events in self._events.items():
            if fnmatch.fnmatchcase(log, pattern):
                return events
        return None
