"""The account of the steps that a guard has touched, and what its policy still allows. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

from client_sdk.guard.policy import Policy

WINDOW: Final = 1_000
"""Steps over which the shares are counted."""


class Bounds:
    """The touched steps of one guard.

    >>> bounds = Bounds(Policy(share=0.001))
    >>> bounds.allows(5, 1, is_whole=False)
    True
    >>> bounds.touch(5, 1, is_whole=False)
    >>> bounds.allows(40, 1, is_whole=False)
    False
    """

    def __init__(self, policy: Policy) -> None:
        """Begin with no touched step."""
        self._policy = policy
        self._touched: dict[bool, deque[int]] = {False: deque(), True: deque()}
        self._row_from: int | None = None  # first step of the present row of touched steps
        self._row_until = -1
        self.total = 0
        """Number of touched steps so far."""

    def allows(self, step: int, steps: int, *, is_whole: bool) -> bool:
        """Return whether ``steps`` steps from ``step`` on may be touched; ``is_whole`` at every coordinate."""
        touched = self._touched[is_whole]
        while touched and touched[0] <= step - WINDOW:
            touched.popleft()
        share = self._policy.whole_share if is_whole else self._policy.share
        if len(touched) + steps > share * WINDOW:
            return False
        first = step if self._row_from is None or step > self._row_until + 1 else self._row_from
        return step + steps - first <= self._policy.in_a_row

    def touch(self, step: int, steps: int, *, is_whole: bool) -> None:
        """Take in that ``steps`` steps from ``step`` on are touched."""
        self._touched[is_whole].extend(range(step, step + steps))
        if self._row_from is None or step > self._row_until + 1:
            self._row_from = step
        self._row_until = max(self._row_until, step + steps - 1)
        self.total += steps
