"""Steps of each attempt that a query shows.

Late records are stored in series of their own, each merged into an attempt: a series shows the steps of its attempt
that no later attempt replaced, and never hides a step of another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.pyramid.buckets import StepRange
from server.schema import attempts

RankAttempt = tuple[int, int]
"""Rank, and the number of one of its attempts or series of late records."""
_Row = Row[tuple[int, int, int, int, int | None]]


@dataclass(frozen=True, kw_only=True)
class AttemptView:
    """Visible steps of a run: those that no later attempt replaced, or those of one attempt."""

    step_ranges: dict[RankAttempt, StepRange]
    """Visible steps, keyed by rank and attempt or series. An attempt that is completely hidden is absent."""
    merged_into: Mapping[RankAttempt, int] = field(default_factory=dict)
    """Attempt that each series of late records belongs to."""

    def attempt_of(self, rank: int, attempt: int) -> int:
        """Return the attempt itself, or the attempt that a series of late records belongs to."""
        return self.merged_into.get((rank, attempt), attempt)

    def clamp(self, step_from: int | None, step_to: int | None) -> StepRange | None:
        """Return the part of the requested range that the view has steps in, or None if there is none.

        >>> view = AttemptView(step_ranges={(0, 0): (0, 9), (0, 1): (10, 40)})
        >>> view.clamp(5, None), view.clamp(50, 60)
        ((5, 40), None)
        """
        if not self.step_ranges:
            return None
        first = min(step_range[0] for step_range in self.step_ranges.values())
        last = max(step_range[1] for step_range in self.step_ranges.values())
        first = first if step_from is None else max(first, step_from)
        last = last if step_to is None else min(last, step_to)
        return (first, last) if first <= last else None


async def read_view(
    connection: AsyncConnection, run_id: str, attempt: int | None, *, with_late: bool = True
) -> AttemptView:
    """Return the view of one attempt, or of what no later attempt replaced where ``attempt`` is None.

    Late records are left out unless ``with_late``.
    """
    names = ("rank", "attempt", "first_step", "last_step", "merged_into")
    query = (
        select(*(attempts.c[name] for name in names))
        .where(attempts.c.run_id == run_id)
        .order_by(attempts.c.rank, attempts.c.attempt)
    )
    rows = (await connection.execute(query)).all()
    late = {(row.rank, row.attempt): row.merged_into for row in rows if row.merged_into is not None}
    if not with_late:
        rows = [row for row in rows if row.merged_into is None]
    return AttemptView(step_ranges=dict(_latest(rows) if attempt is None else _single(rows, attempt)), merged_into=late)


def _single(rows: Sequence[_Row], attempt: int) -> Iterable[tuple[RankAttempt, StepRange]]:
    for row in rows:
        if attempt == (row.attempt if row.merged_into is None else row.merged_into):
            yield (row.rank, row.attempt), (row.first_step, row.last_step)


def _latest(rows: Sequence[_Row]) -> Iterable[tuple[RankAttempt, StepRange]]:
    """Yield the visible steps of each attempt: those before the lowest first step of all attempts after it."""
    lowest_later: dict[int, int] = {}
    last_shown: dict[RankAttempt, int] = {}
    for row in reversed(rows):
        if row.merged_into is not None:
            continue
        later = lowest_later.get(row.rank)
        if later is not None:
            last_shown[row.rank, row.attempt] = later - 1
        shown_last = row.last_step if later is None else min(row.last_step, later - 1)
        lowest_later[row.rank] = row.first_step if later is None else min(row.first_step, later)
        if row.first_step <= shown_last:
            yield (row.rank, row.attempt), (row.first_step, shown_last)
    for row in rows:
        if row.merged_into is not None:
            shown_last = min(row.last_step, last_shown.get((row.rank, row.merged_into), row.last_step))
            if row.first_step <= shown_last:
                yield (row.rank, row.attempt), (row.first_step, shown_last)
