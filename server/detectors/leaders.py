"""Leading layers of a build-up: the largest contributors to the growth of the gradient.

They are computed when an alert asks for them, which never happens in a quiet run.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_LEADERS: Final = 3
"""Number of layers that are named at most."""
MIN_SHARE: Final = 0.01
"""Smallest share of the total with which a layer is named."""

Array = NDArray[np.float64]


class Leaders:
    """The layers with the largest share of the recent growth of Σg², or of Σg² itself if nothing grows.

    >>> leaders = Leaders(("a", "b", "c"), fast=np.array([1.0, 7.0, 2.0]), slow=np.array([1.0, 1.0, 0.0]))
    >>> leaders.layers, leaders.shares
    (('b', 'c'), (0.75, 0.25))
    """

    def __init__(self, names: tuple[str, ...], fast: Array, slow: Array) -> None:
        """Keep the averages of g² over a short and a long time, shape (layers,); callers must not change them later."""
        self._names = names
        self._fast = fast
        self._slow = slow

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the leading layers, largest contributor first."""
        return tuple(self._names[layer] for layer, _ in self._found)

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the leading layers, in the order of `layers`."""
        return tuple(share for _, share in self._found)

    @functools.cached_property
    def _found(self) -> list[tuple[int, float]]:
        if len(self._fast) != len(self._names) or not self._names:
            return []
        gain = np.maximum(self._fast - self._slow, 0.0)
        total = float(gain.sum())
        if not total > 0:
            gain, total = self._fast.copy(), float(self._fast.sum())
        if not total > 0 or not math.isfinite(total):
            return []
        found: list[tuple[int, float]] = []
        for _ in range(min(MAX_LEADERS, len(gain))):  # three passes cost less than sorting hundreds of layers
            layer = int(gain.argmax())
            share = float(gain[layer])
            if share < MIN_SHARE * total:
                break
            found.append((layer, round(share / total, 4)))
            gain[layer] = -1.0
        return found
