"""Segments before they are committed: encoded, but without an id and an attempt. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from client_sdk.protocol import Audit
from server.pyramid.columns import Columns


@dataclass(frozen=True, kw_only=True)
class HistogramDraft:
    """Histograms of one quantity at one step, before they have an id."""

    step: int
    layout: int
    which: str
    """Name of the quantity: "update" or "ratio"."""
    payload: bytes
    """Histograms as encoded by `pyramid.histograms`."""


@dataclass(frozen=True, kw_only=True)
class AuditDraft:
    """Report of the audit with one record."""

    step: int
    audit: Audit


@dataclass(frozen=True, kw_only=True)
class SegmentDraft:
    """Segment before it has an id and an attempt. Its steps never decrease."""

    first_seq: int
    last_seq: int
    first_step: int
    last_step: int
    payload: bytes
    columns: Columns
    """Columns that the payload encodes, so that later stages need not decode it."""
    histograms: tuple[HistogramDraft, ...] = ()
    audits: tuple[AuditDraft, ...] = ()
    """Reports of the audit in the records."""
    is_late: bool = False
    """Whether the records are late: they belong to earlier steps, but training itself did not go back."""

    @property
    def names(self) -> Iterable[str]:
        """Names of the scalars that the segment contains."""
        return self.columns.scalars.keys()
