"""The sign of a bad batch: the norm of one gradient far beyond those before it. Pure."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Final

WINDOW: Final = 64
"""Norms whose median is the usual one."""
LEAST: Final = 16
"""Norms before which nothing is judged."""
SUDDEN: Final = 0.5
"""Part of the jump that must come within one step: an instability takes several to grow as far."""


class OutlierSign:
    """The decision before each step. Its memory is bounded.

    >>> sign = OutlierSign()
    >>> [sign.update(norm, jump=10.0) for norm in [1.0] * 20 + [50.0, 1.0, math.nan]][-3:]
    [True, False, True]
    """

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._last = math.inf

    def update(self, norm: float, *, jump: float) -> bool:
        """Take in the norm of one more gradient; return whether its batch is to be skipped.

        A norm that is not finite is an outlier at once, and one above ``jump`` times the median if most of the rise
        came with this step. An outlier does not become usual.
        """
        if not math.isfinite(norm):
            return True
        last, usual = self._last, median(self._norms) if len(self._norms) >= LEAST else math.inf
        if norm > jump * usual and norm > SUDDEN * jump * last:
            return True
        self._norms.append(norm)
        self._last = norm
        return False
