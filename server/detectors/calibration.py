"""Calibration: the constants of the forecasts that are fitted to recordings.

`python -m benchmarks.fit_forecast DIRECTORY …` prints them with their uncertainty, judges them on families of runs that
they were not fitted to, and stores the range of the date here with `--write`. docs/explanation/forecast.md has the
numbers.
"""

from __future__ import annotations

from typing import Final

EARLIEST: Final = 0.5
"""Begin of the range of a date, in units of the forecast steps."""
LATEST: Final = 2.0
"""End of the range of a date, in units of the forecast steps."""
REACH: Final = 135.0
"""Ratio of a spike's height to the memory loss in units of (r²−1)·(1−ρ⁻²)."""
FACTOR: Final = 5.5
"""The same ratio where λ_max is unknown."""
