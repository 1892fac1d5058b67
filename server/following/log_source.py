"""Interface between logs that grow and the feed that sends what they gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from server.imports.entry import Entry

Position = dict[str, Any]
"""Position up to which a log has been read, as JSON values. An empty one is the beginning."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Entries that a log has gained since the last reading."""

    entries: Sequence[Entry]
    time: float
    """Unix time of the entries that have none: when the file was last changed."""
    has_more: bool = False
    """Whether the log was longer than one reading takes."""
    is_cut: bool = False
    """Whether an earlier file of this name is gone, and with it what had not been read of it."""
    state: Literal["finished", "crashed"] | None = None
    """End of the training, if the log tells it."""


@dataclass(kw_only=True)
class LogDescription:
    """Description of the runs of a log, as far as it has been read."""

    name: str
    tags: tuple[str, ...]
    project: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    run_columns: tuple[str, ...] = ()
    """Names of the columns whose values separate the runs of the log."""


class LogSource(Protocol):
    """A log that grows. One thread at a time reads it; `has_news` may be called from another one meanwhile."""

    path: Path

    @property
    def merges(self) -> bool:
        """Whether consecutive entries of one step are one record."""
        ...

    @property
    def about(self) -> LogDescription:
        """Description of the runs, as far as the log has been read."""
        ...

    @property
    def edition(self) -> int:
        """Number of times that the log began anew, with its first step, in place of an earlier one."""
        ...

    @property
    def modified(self) -> float | None:
        """Unix time of the last change, None while there is no such file."""
        ...

    def has_news(self) -> bool:
        """Return whether the log has changed since the last reading. Takes a system call or two."""
        ...

    def read(self, until: Position | None = None) -> Growth:
        """Return what is complete after the present position, at most about a mebibyte, and move the position.

        ``until`` bounds the reading at a position that was reached before. Raises `ImportFileError` if the log cannot
        be followed.
        """
        ...

    def position(self) -> Position:
        """Return the present position."""
        ...

    def restore(self, position: Position) -> None:
        """Continue at a position of this log."""
        ...

    def owns(self, path: Path) -> bool:
        """Return whether a file is a part of this log, or an earlier one that was renamed."""
        ...
