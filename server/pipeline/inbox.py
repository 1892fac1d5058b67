"""Segments on their way from the commit to the detectors of the same process, so that nobody reads them back.

An inbox promises nothing: what does not fit is left out, and whatever is missing is in the database. Each segment says
which one of its rank came before it, so that the reader knows where something is missing, be it left out here or
committed by another server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from client_sdk.protocol import Layout
from server.pyramid.columns import Columns

ROOM = 32 * 1024 * 1024  # bytes, of all inboxes of a server together
MOST_AT_ONCE = 4 * 1024 * 1024  # bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class FreshSegment:
    """A segment that this process has just committed."""

    id: int
    previous_id: int
    """No segment of the rank lies between this id and its own."""
    rank: int
    attempt: int
    committed_at: float
    columns: Columns
    layouts: Mapping[int, Layout]
    """Of its writer, by their number."""
    size: int
    """Bytes of memory, about."""


class Room:
    """What several inboxes may hold together."""

    def __init__(self, size: int = ROOM) -> None:
        self.free = size


class Inbox:
    """Of one run. Used from the event loop alone."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._segments: deque[FreshSegment] = deque()

    def __len__(self) -> int:
        return len(self._segments)

    def offer(self, segment: FreshSegment) -> bool:
        """False: there is no room; it has to be read from the database."""
        if segment.size > self._room.free:
            return False
        self._room.free -= segment.size
        self._segments.append(segment)
        return True

    def take(self, rank: int, position: int) -> list[FreshSegment] | None:
        """Those that follow the segment ``position`` of this rank without a gap; none where nothing new is here.

        None: something came that does not follow. The database knows what lies between.
        """
        while self._segments and self._segments[0].id <= position:
            self._pop()
        if not self._segments:
            return []
        found: list[FreshSegment] = []
        size = 0
        while self._segments and size < MOST_AT_ONCE:
            following = self._segments[0]
            if following.rank != rank or following.previous_id > position:
                break
            found.append(self._pop())
            position = following.id
            size += following.size
        return found or None

    def drop(self) -> None:
        """Leave out the next one, if there is one."""
        if self._segments:
            self._pop()

    def clear(self) -> None:
        while self._segments:
            self._pop()

    def _pop(self) -> FreshSegment:
        segment = self._segments.popleft()
        self._room.free += segment.size
        return segment
