"""Is a series of memory readings flat? Pure.

The first half of the readings is left out: caches fill and allocators warm up in it. Through the rest goes a straight
line. Neighbouring readings are alike, so the line goes through the means of ten blocks, and their scatter gives the
confidence of its slope (Student's t, eight degrees of freedom).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCKS = 10
STUDENT = 2.306  # 95 % of t with BLOCKS - 2 degrees of freedom lies within
LIMIT_MIB = 4.0
LIMIT_SHARE = 0.02
LIMIT_SLOPE = 0.05  # MiB a minute, 72 MiB a day


@dataclass(frozen=True, kw_only=True)
class Trend:
    """The line through the second half of the readings."""

    mean: float
    """MiB."""
    slope: float
    """MiB a minute."""
    margin: float
    """Half of the slope's 95 % interval."""
    growth: float
    """MiB over the second half, along the line."""

    @property
    def is_flat(self) -> bool:
        """The line climbs by less than 4 MiB or 2 % of the mean, whichever is more, and it is not certain that its
        slope is above 0.05 MiB a minute."""
        return self.growth < max(LIMIT_MIB, LIMIT_SHARE * self.mean) and self.slope - self.margin <= LIMIT_SLOPE


def trend(minutes: Sequence[float], readings: Sequence[float]) -> Trend:
    """Raises `ValueError` for fewer than twenty readings."""
    if len(readings) < 2 * BLOCKS:
        raise ValueError(f"{len(readings)} readings make no trend")
    half = len(readings) // 2
    at = np.array([block.mean() for block in np.array_split(minutes[half:], BLOCKS)])
    values = np.array([block.mean() for block in np.array_split(readings[half:], BLOCKS)])
    centred = at - at.mean()
    slope = float((centred * values).sum() / (centred**2).sum())
    rest = values - values.mean() - slope * centred
    margin = STUDENT * float(np.sqrt((rest**2).sum() / (BLOCKS - 2) / (centred**2).sum()))
    return Trend(mean=float(values.mean()), slope=slope, margin=margin, growth=slope * (minutes[-1] - minutes[half]))
