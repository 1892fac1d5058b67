"""Series: scalars of a run over its steps, at the resolution that fits the asked number of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.storage.buckets import Buckets, choose_width
from server.storage.reader import SCALAR, BucketReader, Column
from server.storage.runs import RunStore
from server.storage.segment_index import SegmentIndexStore, View


@dataclass(frozen=True, kw_only=True)
class Series:
    """Buckets of several scalars, all of one width."""

    step_from: int
    step_to: int
    bucket_steps: int
    series: dict[str, Buckets]
    """One row each; a name without values in the range has no buckets and is absent."""


class SeriesQuery:
    def __init__(self, runs: RunStore, index: SegmentIndexStore, reader: BucketReader) -> None:
        self._runs = runs
        self._index = index
        self._reader = reader

    async def read(
        self,
        run_id: str,
        names: Sequence[str],
        *,
        step_from: int | None,
        step_to: int | None,
        points: int,
        attempt: int | None = None,
    ) -> Series:
        """At most ``points`` buckets of each name, at step_from ≤ step ≤ step_to, by default all steps.

        The range is clamped to the steps that the run has. A name is read from the lowest rank that logs it.
        """
        index = await self._index.get(run_id)
        ranks = await self._runs.scalar_ranks(run_id)
        views = {rank: index.view(rank, attempt) for rank in index.ranks()}
        clamped = clamp(list(views.values()), step_from, step_to)
        if clamped is None:
            return Series(step_from=step_from or 0, step_to=step_to or 0, bucket_steps=1, series={})
        first, last = clamped
        width = choose_width(first, last, points)
        found = {}
        for name in names:
            rank = ranks.get(name)
            if rank is None or rank not in views:
                continue
            scope, view, column = (run_id, rank, attempt), views[rank], Column(kind="scalar", name=name)
            tile = await self._reader.read(scope, view, column, width=width, step_from=first, step_to=last)
            if SCALAR in tile:
                found[name] = tile[SCALAR]
        return Series(step_from=first, step_to=last, bucket_steps=width, series=found)


def clamp(views: Sequence[View], step_from: int | None, step_to: int | None) -> tuple[int, int] | None:
    """The asked range within the steps that the views have, or None where they have none in it."""
    spans = [span for view in views if (span := view.span()) is not None]
    if not spans:
        return None
    first, last = min(span[0] for span in spans), max(span[1] for span in spans)
    first = first if step_from is None else max(first, step_from)
    last = last if step_to is None else min(last, step_to)
    return (first, last) if first <= last else None
