"""Fair queue: a run that floods the server does not keep the others waiting.

Implements start-time fair queueing (Goyal et al. 1996). In virtual time, a piece of work begins when the previous one
of the same run would have ended, but not before the present. Of the waiting pieces, the one that begins first is next.
A run that sends little is therefore always ahead of a run with a backlog, and runs with backlogs share evenly by bytes.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Queue of items that are fair between runs. Not thread-safe.

    >>> queue = FairQueue[str]()
    >>> for item in ("flood 1", "flood 2", "flood 3"):
    ...     queue.put("flood", 1000, item)
    >>> queue.put("calm", 10, "calm 1")
    >>> [queue.pop()[0] for _ in range(len(queue))]
    ['flood 1', 'calm 1', 'flood 2', 'flood 3']
    """

    def __init__(self) -> None:
        self._now = 0.0  # virtual time in bytes
        self._ends: dict[str, float] = {}
        """Virtual end of the last piece of each run whose end has not passed."""
        self._waiting: list[tuple[float, int, float, Item]] = []
        self._count = 0
        self.cost = 0.0
        """Total cost of the waiting items."""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, run_id: str, cost: float, item: Item) -> None:
        """Add an item of a run. ``cost`` is the size of the work, for example in bytes."""
        begin = max(self._now, self._ends.get(run_id, 0.0))
        self._ends[run_id] = begin + cost
        self._count += 1
        self.cost += cost
        heapq.heappush(self._waiting, (begin, self._count, cost, item))

    def pop(self) -> tuple[Item, float]:
        """Remove the next item, and return it with its cost. Raises `IndexError` if the queue is empty."""
        begin, _, cost, item = heapq.heappop(self._waiting)
        self.cost = self.cost - cost if self._waiting else 0.0
        self._now = max(self._now, begin)
        if len(self._ends) > 1_000:
            self._ends = {run_id: end for run_id, end in self._ends.items() if end > self._now}
        return item, cost
