"""Readings of the unstable directions from their amplitudes at the last steps; pure NumPy on the host.

Sources: in the coordinates in which the optimizer's step is a gradient step, a quadratic loss along an eigenvector with
eigenvalue λ is λy²/2 = c²/(2λ), where c = λy is the gradient along it. The first instability of gradient descent has
period two, so that c changes its sign at every step (Cohen et al. 2021, arXiv 2103.00065). Where the loss is no longer
quadratic, the slope of c over the last step takes the place of λ; that step follows from the earlier c and the update
rule of the optimizer, as its preconditioner hardly changes meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client_sdk.optimizers import GradientResponse

WINDOW: Final = 12
"""Steps over which growth and alternation are measured."""
MIN_STEPS: Final = 6
"""Steps below which growth and alternation are not reported."""
FAST: Final = 1.2
"""Growth of an amplitude in one step from which on the slope of c takes the place of λ."""
HELD: Final = 0.3
"""Share of the preconditioned gradient that the direction must hold for that; below it, c is mostly noise."""
SLOPES: Final = (0.1, 5.0)
"""Slopes in units of λ that are believed."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """The motion of the weights by the optimizer, along a direction whose gradient is known at every step."""

    lr: float
    """Learning rate η."""
    response: GradientResponse
    """Response of the update to the gradients."""

    def slopes(self, amplitudes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the slope Δc/Δy of each direction over the last step, [k].

        ``amplitudes`` are the c of the last steps, [steps, k], at least two. What was before them is taken to have
        alternated.
        """
        response = self.response
        gain = response.direct + response.momentum * response.intake / (1.0 + response.decay)
        average = response.intake * amplitudes[0] / (1.0 + response.decay)
        for one in amplitudes[1:-1]:
            average = response.decay * average + response.intake * one
        moved = -self.lr * (response.direct * amplitudes[-2] + response.momentum * average) / gain
        with np.errstate(all="ignore"):
            slopes: NDArray[np.float64] = (amplitudes[-1] - amplitudes[-2]) / moved
        return slopes


def mode_scalars(rows: NDArray[np.float64], motion: Motion | None = None) -> dict[str, float]:
    """Return the scalars of the last step; empty if no direction has a positive eigenvalue.

    ``rows`` has one row for each of the last steps, shape (steps, 1 + 2k): the square of the preconditioned gradient
    ‖D^½·g‖², the amplitudes c of the k directions, and their eigenvalues λ. The scalars are

    - `mode_loss`: Σ c²/(2λ) over the directions with λ > 0, in the unit of the loss; with the ``motion`` of the
      optimizer, a direction that alternates and grows fast is given the slope of c in the place of λ;
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
        scalars = {"mode_loss": float(_held_now(square, amplitudes, values, motion))}
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


def _held_now(
    square: NDArray[np.float64], amplitudes: NDArray[np.float64], values: NDArray[np.float64], motion: Motion | None
) -> float:
    """Return the loss that the directions hold at the last step."""
    now, curvatures = amplitudes[-1], values[-1]
    if motion is not None and motion.lr > 0.0 and len(amplitudes) >= MIN_STEPS:
        slopes = motion.slopes(amplitudes)
        signs = np.sign(amplitudes[-3:])
        is_fast = (signs[0] * signs[1] < 0) & (signs[1] * signs[2] < 0) & (np.abs(now) >= FAST * np.abs(amplitudes[-2]))
        is_believed = (slopes > SLOPES[0] * curvatures) & (slopes < SLOPES[1] * curvatures)
        curvatures = np.where(is_fast & is_believed & (now**2 >= HELD * square[-1]), slopes, curvatures)
    with np.errstate(all="ignore"):
        return float(np.where(values[-1] > 0, now**2 / (2.0 * curvatures), 0.0).sum())
