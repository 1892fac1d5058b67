"""Reads the segments of a run for its follower: from the inbox, or from the database if the inbox has a gap."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from server.detectors.layer_sums import STATISTICS
from server.log_actions import LogAction
from server.models import Layout
from server.pipeline.inbox import FreshSegment, Inbox
from server.pyramid.columns import Columns, Payload
from server.storage.layouts import LayoutStore
from server.storage.measurements.segments import SegmentStore, StoredSegment, UnreadSegments

logger = logging.getLogger(__name__)

DETECTOR_STATISTICS = frozenset(STATISTICS)
MAX_SEGMENTS = 64
"""Segments that one query of the database returns."""

Segment = StoredSegment | FreshSegment


class SegmentSource:
    """Reads and decodes the segments of one run. Used from the event loop only, except for `decode`."""

    def __init__(self, run_id: str, *, inbox: Inbox, layouts: LayoutStore, segments: SegmentStore) -> None:
        self.inbox = inbox
        """Segments that this server has committed and the follower has not read."""
        self._run_id = run_id
        self._layout_store = layouts
        self._segments = segments
        self._layouts: dict[int, dict[int, Layout]] = {}

    async def unread(self, rank: int | None, position: int) -> UnreadSegments:
        """Return the next segments of a rank after ``position`` from the database. Raises `DatabaseError`.

        A rank of None stands for the lowest rank of the run.
        """
        return await self._segments.unread(self._run_id, rank, position, MAX_SEGMENTS)

    async def load_layouts(self, found: Sequence[StoredSegment]) -> None:
        """Read the layouts that are needed to decode stored segments and are not known yet. Raises `DatabaseError`."""
        if all(segment.writer_id in self._layouts for segment in found) and not self._has_new_layout(found):
            return
        self._layouts = {}
        for item in await self._layout_store.of_run(self._run_id):
            self._layouts.setdefault(item.writer_id, {})[item.layout.id] = item.layout
        for segment in found:
            self._layouts.setdefault(segment.writer_id, {})

    def decode(self, segment: Segment, statistics: frozenset[str]) -> tuple[Columns | None, Mapping[int, Layout]]:
        """Return the columns of a segment, or None if it is damaged, and the layouts of its writer.

        ``statistics`` are read in addition to those of the detectors. May be called from any thread.
        """
        if isinstance(segment, FreshSegment):
            return segment.columns, segment.layouts
        try:
            columns = Payload(segment.payload).columns(DETECTOR_STATISTICS | statistics)
        except ValueError as error:
            logger.error(
                "segment %s of run %s is damaged and is skipped by the detectors: %s",
                segment.id,
                self._run_id,
                error,
                extra={"action": LogAction.SEGMENT_CORRUPT, "run_id": self._run_id},
            )
            return None, {}
        return columns, self._layouts[segment.writer_id]

    def _has_new_layout(self, found: Sequence[StoredSegment]) -> bool:
        for segment in found:
            known: Mapping[int, Layout] = self._layouts[segment.writer_id]
            try:
                if any(number not in known for number in Payload(segment.payload).layouts()):
                    return True
            except ValueError:
                continue  # `decode` reports the damage
        return False
