"""Segments on their way from the commit to the detectors of the same process, which need not read them back.

An inbox is a shortcut without guarantees: a segment that does not fit is left out, and the database has all of them.
Each segment names its predecessor of the same rank, so that the reader detects a gap, whether the segment was left out
here or committed by another server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from client_sdk.protocol import Layout
from server.pyramid.columns import Columns
from server.storage.measurements.commits import Commit, CommitRequest

INBOX_BYTES = 32 * 1024 * 1024
"""Bytes that all inboxes of a server may hold together."""
MAX_TAKEN_BYTES = 4 * 1024 * 1024
"""Bytes after which `Inbox.take` returns no further segment."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FreshSegment:
    """A segment that this process has just committed."""

    id: int
    previous_id: int
    """Lower bound of the gap check: no segment of this rank has an id between this one and ``id``."""
    rank: int
    attempt: int
    """Attempt that the records belong to."""
    committed_at: float
    columns: Columns
    layouts: Mapping[int, Layout]
    """Layouts of the segment's writer, keyed by layout number."""
    size: int
    """Approximate size in memory in bytes."""
    is_late: bool = False
    """Whether the records are late: they belong to earlier steps of the attempt."""


def fresh_segments(request: CommitRequest, commit: Commit) -> list[FreshSegment]:
    """Return the segments of a commit in the form that the detectors read."""
    return [
        FreshSegment(
            id=stored.id,
            previous_id=stored.previous_id,
            rank=request.writer.rank,
            attempt=stored.attempt,
            committed_at=request.now,
            columns=draft.columns,
            layouts=request.writer.layouts,
            size=draft.columns.size,
            is_late=stored.is_late,
        )
        for draft, stored in zip(request.drafts, commit.segments, strict=True)
    ]


class InboxBudget:
    """Memory that several inboxes share."""

    def __init__(self, size: int = INBOX_BYTES) -> None:
        """``size`` is the total in bytes."""
        self.free = size


class Inbox:
    """Fresh segments of one run, in the order of their commits. Used from the event loop only."""

    def __init__(self, budget: InboxBudget) -> None:
        self._budget = budget
        self._segments: deque[FreshSegment] = deque()

    def __len__(self) -> int:
        return len(self._segments)

    def offer(self, segment: FreshSegment) -> bool:
        """Add a segment. Return False if there is no room, so that it has to be read from the database."""
        if segment.size > self._budget.free:
            return False
        self._budget.free -= segment.size
        self._segments.append(segment)
        return True

    def take(self, rank: int, position: int) -> list[FreshSegment] | None:
        """Remove and return the segments of a rank that follow segment ``position`` without a gap.

        Returns an empty list if nothing new has arrived, and None if the next segment does not follow directly; then
        the database has what lies between.
        """
        while self._segments and self._segments[0].id <= position:
            self._pop()
        if not self._segments:
            return []
        found: list[FreshSegment] = []
        size = 0
        while self._segments and size < MAX_TAKEN_BYTES:
            following = self._segments[0]
            if following.rank != rank or following.previous_id > position:
                break
            found.append(self._pop())
            position = following.id
            size += following.size
        return found or None

    def drop(self) -> None:
        """Discard the next segment, if there is one."""
        if self._segments:
            self._pop()

    def clear(self) -> None:
        """Discard all segments and return their memory to the budget."""
        while self._segments:
            self._pop()

    def _pop(self) -> FreshSegment:
        segment = self._segments.popleft()
        self._budget.free += segment.size
        return segment
