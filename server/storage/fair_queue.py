"""Who comes next: runs take turns, so that one that floods the server does not keep the others waiting.

Start-time fair queueing (Goyal et al. 1996): every piece of work begins, in virtual time, when the one before it of the
same run would have ended, and not before now; of those that wait, the one that begins first comes next. A run that
sends little is always ahead of one that has a backlog, and backlogs share evenly, byte by byte.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Not thread-safe."""

    def __init__(self) -> None:
        self._now = 0.0  # virtual time: bytes
        self._ends: dict[str, float] = {}
        """Of the last piece of each run whose end is not past."""
        self._waiting: list[tuple[float, int, float, Item]] = []
        self._count = 0
        self.cost = 0.0
        """Of all that waits."""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, run_id: str, cost: float, item: Item) -> None:
        """``cost``: of the work, for example bytes."""
        begin = max(self._now, self._ends.get(run_id, 0.0))
        self._ends[run_id] = begin + cost
        self._count += 1
        self.cost += cost
        heapq.heappush(self._waiting, (begin, self._count, cost, item))

    def pop(self) -> tuple[Item, float]:
        """The item whose turn it is, and its cost. Raises `IndexError` when none waits."""
        begin, _, cost, item = heapq.heappop(self._waiting)
        self.cost = self.cost - cost if self._waiting else 0.0
        self._now = max(self._now, begin)
        if len(self._ends) > 1_000:
            self._ends = {run_id: end for run_id, end in self._ends.items() if end > self._now}
        return item, cost
