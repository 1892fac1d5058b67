"""The unstable directions of a run, followed at every step as long as that stays within the budget.

Owns the decision only; `UnstableDirections` does the arithmetic. Used on the training thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Final

from client_sdk.budget import Budget
from client_sdk.curvature.unstable_directions import UnstableDirections

PART: Final = 0.5  # of the budget, which following the directions at every step may take
COSTS: Final = 5  # steps followed after which their cost is judged
REST: Final = 16  # steps after which it is judged again
FORGETTING: Final = 0.94  # factor then on the cost that was too high


class Following:
    """Decision at which steps the directions are followed."""

    def __init__(self, directions: UnstableDirections, budget: Budget, say: Callable[[str], None]) -> None:
        """Follow ``directions`` within ``budget``, and ``say`` once that this takes too long."""
        self._directions, self._budget, self._say = directions, budget, say
        self._costs: deque[float] = deque(maxlen=COSTS)
        self._rest = 0  # steps to come that are left out

    @property
    def is_resting(self) -> bool:
        """Whether `pass_step` may take the place of `follow`."""
        return self._rest > 0 or not self._directions.is_known

    def pass_step(self) -> None:
        """Leave out a step."""
        self._rest -= self._rest > 0

    def follow(self) -> None:
        """Take in the gradients of the step that is under way, if that is within the budget."""
        if not self._directions.is_known:
            return
        if self._rest:
            self._rest -= 1
            return
        costs = self._costs
        if len(costs) == COSTS and median(costs) > PART * self._budget.share * self._budget.step_time:
            for _ in range(COSTS):
                costs.append(costs.popleft() * FORGETTING)  # so that it is tried again when its cost was an exception
            self._rest = REST
            self._directions.pause()
            self._say(
                "following the unstable directions takes more time than the budget of watch() allows beside such short "
                "steps, so that mode_loss is not measured. A larger budget, such as watch(…, budget=1.0), allows it"
            )
            return
        began = time.perf_counter()
        self._directions.follow()
        costs.append(time.perf_counter() - began)
