"""Is a series of memory readings flat? Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LIMIT_MIB = 4.0
LIMIT_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A straight line through the second half of the readings, where caches and allocators have warmed up."""

    mean: float
    """MiB."""
    slope: float
    """MiB a minute."""
    growth: float
    """MiB over the second half, along the line."""

    @property
    def is_flat(self) -> bool:
        """The line climbs by less than 4 MiB or 2 % of the mean, whichever is more."""
        return self.growth < max(LIMIT_MIB, LIMIT_SHARE * self.mean)


def trend(minutes: Sequence[float], readings: Sequence[float]) -> Trend:
    """Raises `ValueError` for fewer than four readings."""
    if len(readings) < 4:
        raise ValueError(f"{len(readings)} readings make no trend")
    half = len(readings) // 2
    at, values = np.array(minutes[half:]), np.array(readings[half:])
    slope, _ = np.polyfit(at - at.mean(), values, 1)
    return Trend(mean=float(values.mean()), slope=float(slope), growth=float(slope * (at[-1] - at[0])))
