"""The layers that lead a build-up. Found when somebody asks, which a quiet run never does."""

from __future__ import annotations

import functools
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

MOST: Final = 3
LEAST_SHARE: Final = 0.01

Array = NDArray[np.float64]


class Leaders:
    """The three layers with the largest share of the recent growth of Σg², of its size where nothing grows."""

    def __init__(self, names: tuple[str, ...], fast: Array, slow: Array) -> None:
        """``fast``, ``slow``: g² of each layer, averaged over a short and a long time; not to be changed afterwards."""
        self._names = names
        self._fast = fast
        self._slow = slow

    @property
    def layers(self) -> tuple[str, ...]:
        """Most guilty first."""
        return tuple(self._names[layer] for layer, _ in self._found)

    @property
    def shares(self) -> tuple[float, ...]:
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
        for _ in range(min(MOST, len(gain))):  # three passes cost less than to sort hundreds
            layer = int(gain.argmax())
            share = float(gain[layer])
            if share < LEAST_SHARE * total:
                break
            found.append((layer, round(share / total, 4)))
            gain[layer] = -1.0
        return found
