"""Calibration: the constants of the forecasts that are fitted to recordings.

`python -m benchmarks.fit_forecast DIRECTORY …` prints them with their uncertainty, judges them on families of runs that
they were not fitted to, and stores the range of all dates here with `--write`; `python -m benchmarks.fit_ranges` does
so for the ranges of each kind of evidence. docs/explanation/forecast.md has the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EARLIEST: Final = 0.5
"""Begin of the range of a date, in units of the forecast steps."""
LATEST: Final = 2.0
"""End of the range of a date, in units of the forecast steps."""
RANGES: Final[Mapping[tuple[str, bool], tuple[float, float]]] = {
    ("alternation", False): (0.35, 2.85),
    ("alternation", True): (0.35, 2.85),
    ("climb", False): (0.1, 1.1),
    ("crossed", True): (0.73, 1.73),
    ("directional", True): (0.6, 1.85),
    ("oscillation", True): (0.58, 2.58),
}
"""Range of a date in units of the forecast steps where the kind of evidence needs another one than all dates.

Keys are the sign of the predictor, and whether λ_max is measured.
"""
REACH: Final = 135.0
"""Ratio of a spike's height to the memory loss in units of (r²−1)·(1−ρ⁻²)."""
FACTOR: Final = 5.5
"""The same ratio where λ_max is unknown."""
