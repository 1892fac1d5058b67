"""Readings of the period-two component of the gradient from its size at the last steps; pure NumPy on the host.

Sources: the first instability of gradient descent has period two, so that the gradient along the unstable direction
changes its sign at every step (Cohen et al. 2021, arXiv 2103.00065). With y_t = D^½·g_t the component is
e_t = −β·e_{t−1} + (1−β)·y_t, a low-pass filter of (−1)^t·y_t.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from client_sdk.optimizers import GradientResponse

Array = NDArray[np.float64]

DECAY: Final = 0.8
"""Factor β of the filter, whose memory is five steps."""
SETTLING: Final = 8
"""Consecutive steps after which the filter has forgotten that it began with nothing; there is no reading before."""
WINDOW: Final = 12
"""Steps over which growth is measured."""
REACH: Final = SETTLING + WINDOW
"""Consecutive steps that a growth needs."""
RECENT: Final = 4
"""Steps over which the growth must last to the end, as it ends when λ_max falls."""
OVER: Final = 0.02
"""Growth per step above which a run may be over its limit."""
STRAIGHT: Final = 0.7
"""Share of the variance of the logarithm that a straight line must explain."""
ALTERNATING: Final = 0.5
"""Share of the component in the gradient above which the gradient alternates."""
SOURCE_CURVATURE: Final = 1.0
"""Value of `stability_ratio_source` for λ_max of a probe."""
SOURCE_PERIOD_TWO: Final = 2.0
"""Value of `stability_ratio_source` for the growth of the period-two component."""


def settled(squares: Array, levels: Array, steps: int) -> tuple[Array, Array]:
    """Return both sums of a filter that began with nothing ``steps`` steps ago, corrected for that; NaN if too few.

    ``squares`` are Σ e², and ``levels`` the sums of the filter Σ (1−β)·β^k·y²_{t−k}, of any shape.
    """
    if steps < SETTLING:
        return np.full_like(squares, np.nan), np.full_like(levels, np.nan)
    known = 1.0 - DECAY**steps
    return squares / known**2, levels / known


def period_two_scalars(
    squares: Array, totals: Array, steps: int, response: GradientResponse | None
) -> dict[str, float]:
    """Return the scalars of the last step; empty before `SETTLING` steps and where a gradient was not finite.

    ``squares`` and ``totals`` are Σ e² and Σ y² over all coordinates at the last steps, [n], the oldest first, and
    ``steps`` counts the consecutive steps so far, the last one included. The scalars are

    - `period_two`: ‖e‖ / √level, the share of the gradient that changes its sign at every step, with the level
      Σ_k (1−β)·β^k·‖y_{t−k}‖²; 1 for an alternating gradient, 1/3 for noise, 1/9 for a constant one;
    - `period_two_growth`: the slope of log ‖e‖ over `WINDOW` steps, after `REACH` consecutive steps;
    - `stability_ratio` where the growth over `WINDOW` and that over `RECENT` steps are above `OVER`, a line explains
      `STRAIGHT` of the logarithm, the share is above `ALTERNATING`, and the ``response`` is known: that of the lesser
      growth (see `GradientResponse.stability_ratio`). Its source is in `stability_ratio_source`.
    """
    count = min(len(squares), steps)
    squares, totals = squares[-count:], totals[-count:]
    if steps < SETTLING or not (np.isfinite(squares).all() and np.isfinite(totals).all()):
        return {}
    weights = (1.0 - DECAY) * DECAY ** np.arange(count)[::-1]
    level = float(weights @ totals) / (1.0 - DECAY**count)
    known = 1.0 - DECAY ** np.arange(steps - count + 1, steps + 1)
    norms = np.sqrt(squares) / known
    if level <= 0:
        return {}
    scalars = {"period_two": float(min(1.0, norms[-1] / np.sqrt(level)))}
    if count < REACH or not (norms[-WINDOW:] > 0).all():
        return scalars
    growth, fit = _slope(np.log(norms[-WINDOW:]))
    scalars["period_two_growth"] = growth
    lasting = min(growth, _slope(np.log(norms[-RECENT:]))[0])
    if response is not None and lasting > OVER and fit > STRAIGHT and scalars["period_two"] > ALTERNATING:
        scalars["stability_ratio"] = response.stability_ratio(lasting)
        scalars["stability_ratio_source"] = SOURCE_PERIOD_TWO
    return scalars


def _slope(logarithms: Array) -> tuple[float, float]:
    """Return the least-squares slope per step and the share of the variance that the straight line explains."""
    time = np.arange(len(logarithms)) - (len(logarithms) - 1) / 2
    centred = logarithms - logarithms.mean()
    slope = float(centred @ time / (time @ time))
    variance = float(centred @ centred)
    return slope, slope**2 * float(time @ time) / variance if variance > 0 else 0.0
