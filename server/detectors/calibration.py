"""Calibration: the constants of forecasts that are fitted to recordings, with the uncertainty of each.

Written by `python -m benchmarks.fit_forecast … --write`; docs/explanation/forecast.md says how. Edit the program, not
this file.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Evidence(StrEnum):
    """Kinds of evidence that a date rests on, from the most to the least direct."""

    DIRECTION = "direction"
    """The loss that the unstable directions hold is measured, and grows."""
    GRADIENT = "gradient"
    """‖g‖ grows, and λ_max is measured."""
    NORM = "norm"
    """‖g‖ grows, and λ_max is not measured."""
    TREND = "trend"
    """No growth is seen yet, but λ_max rises."""


class Band(NamedTuple):
    """The range of a date in units of the remaining steps, and the steps that are added to its ends."""

    low: float
    high: float
    slack: int


BANDS: Final[dict[Evidence, Band]] = {
    Evidence.DIRECTION: Band(low=0.5, high=1.8, slack=2),
    Evidence.GRADIENT: Band(low=0.5, high=1.8, slack=2),
    Evidence.NORM: Band(low=0.5, high=1.8, slack=2),
    Evidence.TREND: Band(low=0.5, high=1.8, slack=2),
}
"""Ranges that held the onset of four in five spikes of families that they were not fitted to."""
REACH: Final = 135.0
"""Ratio of a spike's height to the memory loss in units of (r²−1)·(1−ρ⁻²)."""
FACTOR: Final = 5.5
"""The same ratio where λ_max is unknown."""
SPREAD: Final = 3.0
"""Factor by which a height may be larger or smaller before the run had a spike."""
