"""The trend of a series of memory samples, and whether it is flat. Pure.

The first half of the samples is left out, because caches fill and allocators warm up in it. A straight line is fitted
to the rest. Neighbouring samples are correlated, so the line is fitted to the means of ten blocks, whose scatter gives
the confidence interval of its slope (Student's t, eight degrees of freedom).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCKS = 10
STUDENT = 2.306  # bound of the central 95 % of t with BLOCKS - 2 degrees of freedom
LIMIT_MIB = 4.0  # MiB
LIMIT_SHARE = 0.02  # share of the mean
LIMIT_SLOPE = 0.05  # MiB a minute, which is 72 MiB a day


@dataclass(frozen=True, kw_only=True)
class Trend:
    """The line through the second half of the samples."""

    mean: float
    """Mean of the second half in MiB."""
    slope: float
    """Slope of the line in MiB a minute."""
    margin: float
    """Half of the 95 % confidence interval of the slope, in MiB a minute."""
    growth: float
    """Growth along the line over the second half, in MiB."""

    @property
    def is_flat(self) -> bool:
        """Whether the memory is flat.

        The line must climb by less than 4 MiB or 2 % of the mean, whichever is more, and its slope must not be above
        0.05 MiB a minute with certainty.
        """
        return self.growth < max(LIMIT_MIB, LIMIT_SHARE * self.mean) and self.slope - self.margin <= LIMIT_SLOPE


def trend(minutes: Sequence[float], samples: Sequence[float]) -> Trend:
    """Return the trend of ``samples``, in MiB, taken at ``minutes``. Raises `ValueError` for fewer than 20 samples."""
    if len(samples) < 2 * BLOCKS:
        raise ValueError(f"{len(samples)} samples are too few for a trend; take at least {2 * BLOCKS}")
    half = len(samples) // 2
    at = np.array([block.mean() for block in np.array_split(minutes[half:], BLOCKS)])
    values = np.array([block.mean() for block in np.array_split(samples[half:], BLOCKS)])
    centred = at - at.mean()
    slope = float((centred * values).sum() / (centred**2).sum())
    rest = values - values.mean() - slope * centred
    margin = STUDENT * float(np.sqrt((rest**2).sum() / (BLOCKS - 2) / (centred**2).sum()))
    return Trend(mean=float(values.mean()), slope=slope, margin=margin, growth=slope * (minutes[-1] - minutes[half]))
