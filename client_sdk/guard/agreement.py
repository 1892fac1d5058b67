"""One decision for all ranks of a training: rank 0 decides, and a rank that cannot follow stops the guard everywhere.

Each step has one small sum over a process group of the host, in which rank 0 puts its decision and every rank its
readiness. So all replicas change alike, at the same step.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, NamedTuple

import torch

TIMEOUT: Final = timedelta(seconds=120)
"""Time after which a rank that makes no step is given up."""


class Decision(NamedTuple):
    """The action of all ranks after a step, as numbers."""

    action: int = -1
    """Position in the list of all actions of the policy; −1 for none."""
    factor: float = 1.0
    """Factor on the second moment, if the action raises it."""


class Agreement:
    """The sums of one guard. Every rank creates it, in the same order, and calls `agree` after every step."""

    def __init__(self) -> None:
        """Create a process group of the host for the ranks of the default group."""
        self._group: Any = torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)
        self._rank = torch.distributed.get_rank()

    def agree(self, decision: Decision, *, is_sound: bool) -> Decision | None:
        """Return the decision of rank 0, or None if a rank is not sound. Waits for the other ranks."""
        own = decision if self._rank == 0 else Decision(0, 0.0)
        sums = torch.tensor([float(own.action), own.factor, float(not is_sound)], dtype=torch.float64)
        torch.distributed.all_reduce(sums, group=self._group)
        action, factor, unsound = sums.tolist()
        return None if unsound else Decision(int(action), factor)


def is_shared() -> bool:
    """Return whether this process is one of several that train together."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
