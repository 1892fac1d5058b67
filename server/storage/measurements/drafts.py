"""Segments as they are handed to a commit: packed, and still without an id and an attempt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from server.pyramid.columns import Columns


@dataclass(frozen=True, kw_only=True)
class HistogramDraft:
    """The histograms of one quantity at one step, encoded by `storage.histogram`."""

    step: int
    layout: int
    which: str
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class SegmentDraft:
    """A segment before it has an id and an attempt. Its steps never decrease."""

    first_seq: int
    last_seq: int
    first_step: int
    last_step: int
    payload: bytes
    columns: Columns
    """What the payload was made of, for whoever goes on with it."""
    histograms: tuple[HistogramDraft, ...] = ()

    @property
    def names(self) -> Iterable[str]:
        """The scalars that are logged in it."""
        return self.columns.scalars.keys()
