"""Which steps of which attempt of each rank a query shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.schema import attempts

Window = tuple[int, int]
"""First and last step."""


@dataclass(frozen=True, kw_only=True)
class View:
    """The latest view of a run, or one attempt of it."""

    windows: dict[tuple[int, int], Window]
    """(rank, attempt) to the steps that are shown of it; an attempt that is hidden altogether is absent."""

    def clamp(self, step_from: int | None, step_to: int | None) -> Window | None:
        """The asked range within the steps that the view has, or None where it has none in it."""
        if not self.windows:
            return None
        first = min(window[0] for window in self.windows.values())
        last = max(window[1] for window in self.windows.values())
        first = first if step_from is None else max(first, step_from)
        last = last if step_to is None else min(last, step_to)
        return (first, last) if first <= last else None


async def read_view(connection: AsyncConnection, run_id: str, attempt: int | None) -> View:
    """``attempt``: None shows of each attempt what no later one replaced."""
    query = (
        select(attempts.c.rank, attempts.c.attempt, attempts.c.first_step, attempts.c.last_step)
        .where(attempts.c.run_id == run_id)
        .order_by(attempts.c.rank, attempts.c.attempt)
    )
    rows = [tuple(row) for row in await connection.execute(query)]
    return View(windows=dict(_latest(rows) if attempt is None else _single(rows, attempt)))


def _single(rows: list[tuple[int, int, int, int]], attempt: int) -> Iterable[tuple[tuple[int, int], Window]]:
    return (((rank, number), (first, last)) for rank, number, first, last in rows if number == attempt)


def _latest(rows: list[tuple[int, int, int, int]]) -> Iterable[tuple[tuple[int, int], Window]]:
    """An attempt is visible up to the least first step of those after it."""
    ceiling: dict[int, int] = {}
    for rank, number, first, last in reversed(rows):
        shown_last = ceiling.get(rank, last)
        ceiling[rank] = min(ceiling.get(rank, first - 1), first - 1)
        if first <= shown_last:
            yield (rank, number), (first, shown_last)
