"""Steps of each attempt that a query shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.pyramid.buckets import StepRange
from server.schema import attempts


@dataclass(frozen=True, kw_only=True)
class AttemptView:
    """Visible steps of a run: those that no later attempt replaced, or those of one attempt."""

    step_ranges: dict[tuple[int, int], StepRange]
    """Visible steps, keyed by (rank, attempt). An attempt that is completely hidden is absent."""

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


async def read_view(connection: AsyncConnection, run_id: str, attempt: int | None) -> AttemptView:
    """Return the view of one attempt, or of what no later attempt replaced where ``attempt`` is None."""
    query = (
        select(attempts.c.rank, attempts.c.attempt, attempts.c.first_step, attempts.c.last_step)
        .where(attempts.c.run_id == run_id)
        .order_by(attempts.c.rank, attempts.c.attempt)
    )
    rows = [tuple(row) for row in await connection.execute(query)]
    return AttemptView(step_ranges=dict(_latest(rows) if attempt is None else _single(rows, attempt)))


def _single(rows: list[tuple[int, int, int, int]], attempt: int) -> Iterable[tuple[tuple[int, int], StepRange]]:
    return (((rank, number), (first, last)) for rank, number, first, last in rows if number == attempt)


def _latest(rows: list[tuple[int, int, int, int]]) -> Iterable[tuple[tuple[int, int], StepRange]]:
    """Yield the visible steps of each attempt: those before the lowest first step of all attempts after it."""
    ceiling: dict[int, int] = {}
    for rank, number, first, last in reversed(rows):
        shown_last = ceiling.get(rank, last)
        ceiling[rank] = min(ceiling.get(rank, first - 1), first - 1)
        if first <= shown_last:
            yield (rank, number), (first, shown_last)
