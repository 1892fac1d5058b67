"""Readings of the unstable directions from their amplitudes at the last steps; pure NumPy on the host.

Sources: in the coordinates in which the optimizer's step is a gradient step, a quadratic loss along an eigenvector with
eigenvalue λ is λy²/2 = c²/(2λ), where c = λy is the gradient along it. The first instability of gradient descent has
period two, so that c changes its sign at every step (Cohen et al. 2021, arXiv 2103.00065).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

WINDOW: Final = 12
"""Steps over which growth and alternation are measured."""
MIN_STEPS: Final = 6
"""Steps below which growth and alternation are not reported."""


def mode_scalars(rows: NDArray[np.float64]) -> dict[str, float]:
    """Return the scalars of the last step; empty if no direction has a positive eigenvalue.

    ``rows`` has one row for each of the last steps, shape (steps, 1 + 2k): the square of the preconditioned gradient
    ‖D^½·g‖², the amplitudes c of the k directions, and their eigenvalues λ. The scalars are

    - `mode_loss`: Σ c²/(2λ) over the directions with λ > 0, in the unit of the loss;
    - `mode_share`: Σ c² / ‖D^½·g‖², the share of the preconditioned gradient that these directions hold;
    - `mode_growth`: the slope of ½·log(mode_loss), so that 0.05 means that the amplitude grows by 5 % a step;
    - `mode_alternation`: the share of the steps at which the sign of the leading direction's amplitude changed.
    """
    count = (rows.shape[1] - 1) // 2
    square, amplitudes, values = rows[:, 0], rows[:, 1 : 1 + count], rows[:, 1 + count :]
    with np.errstate(all="ignore"):
        parts = np.where(values > 0, amplitudes**2 / (2.0 * values), 0.0)  # [steps, k]
        held = parts.sum(1)
        if not np.isfinite(held[-1]) or not (values[-1] > 0).any():
            return {}
        scalars = {"mode_loss": float(held[-1])}
        if square[-1] > 0:
            inside = np.where(values[-1] > 0, amplitudes[-1] ** 2, 0.0).sum()
            scalars["mode_share"] = float(min(1.0, inside / square[-1]))
    is_usable = (held > 0) & np.isfinite(held)
    if len(rows) >= MIN_STEPS and is_usable.all():
        time = np.arange(len(rows)) - (len(rows) - 1) / 2
        scalars["mode_growth"] = float(time @ np.log(held) / (2.0 * (time @ time)))
        signs = np.sign(amplitudes[:, int(parts[-1].argmax())])
        scalars["mode_alternation"] = float(np.mean(signs[1:] != signs[:-1]))
    return scalars
