"""The loss of an unstable direction beyond the quadratic region, from the gradients along it alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from client_sdk.curvature.mode_reading import WINDOW, Motion, mode_scalars
from client_sdk.optimizers import GradientResponse

RESPONSES = {
    "sgd": GradientResponse(direct=1.0, momentum=0.0, intake=1.0, decay=0.0),
    "heavy-ball": GradientResponse(direct=0.0, momentum=1.0, intake=1.0, decay=0.9),
    "nesterov": GradientResponse(direct=1.0, momentum=0.9, intake=1.0, decay=0.9),
    "adam": GradientResponse(direct=0.0, momentum=1.0, intake=0.1, decay=0.9),
}
CURVATURE, LR = 3.0, 0.01


LANDSCAPES: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "quadratic": (lambda y: CURVATURE * y, lambda y: CURVATURE * y**2 / 2),
    "steeper": (lambda y: CURVATURE * (y + y**3), lambda y: CURVATURE * (y**2 / 2 + y**4 / 4)),
    "flatter": (lambda y: CURVATURE * math.tanh(y), lambda y: CURVATURE * math.log(math.cosh(y))),
}
"""Gradient and loss along a direction, whose curvature at its minimum is `CURVATURE`."""


def diverging(
    response: GradientResponse, landscape: str, *, ratio: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Follow an optimizer from a tiny y, with the curvature at ``ratio`` times the limit.

    Returns the gradients and the losses up to the step at which y is about 1.
    """
    gradient_at, loss_at = LANDSCAPES[landscape]
    gain = response.direct + response.momentum * response.intake / (1 + response.decay)
    scale = ratio * 2 / (LR * CURVATURE) / gain  # of the preconditioner without the gain
    y, average = 1e-6, 0.0
    gradients, losses = [], []
    while abs(y) < 1:
        gradient = gradient_at(y)
        gradients.append(gradient)
        losses.append(loss_at(y))
        average = response.decay * average + response.intake * gradient
        y -= LR * scale * (response.direct * gradient + response.momentum * average)
    return np.array(gradients), np.array(losses)


def rows_of(gradients: NDArray[np.float64], ratio: float) -> NDArray[np.float64]:
    """Return the rows of the last steps in the coordinates in which the optimizer makes gradient steps."""
    scale = ratio * 2 / (LR * CURVATURE)
    amplitudes = math.sqrt(scale) * gradients[-WINDOW:]
    return np.stack([1.1 * amplitudes**2, amplitudes, np.full(len(amplitudes), scale * CURVATURE)], 1)


@pytest.mark.parametrize("name", RESPONSES)
def test_the_slope_of_the_gradient_is_the_curvature_of_a_quadratic(name: str) -> None:
    motion = Motion(lr=LR, response=RESPONSES[name])
    gradients, losses = diverging(RESPONSES[name], "quadratic", ratio=1.4)
    rows = rows_of(gradients, 1.4)
    assert motion.slopes(rows[:, 1:2])[0] == pytest.approx(rows[0, 2], rel=0.03)
    assert mode_scalars(rows, motion)["mode_loss"] == pytest.approx(losses[-1], rel=0.03)


@pytest.mark.parametrize("landscape", ["steeper", "flatter"])
@pytest.mark.parametrize("name", RESPONSES)
def test_the_held_loss_follows_a_loss_that_is_not_quadratic(name: str, landscape: str) -> None:
    motion = Motion(lr=LR, response=RESPONSES[name])
    gradients, losses = diverging(RESPONSES[name], landscape, ratio=1.4)
    rows = rows_of(gradients, 1.4)
    plain, found = mode_scalars(rows)["mode_loss"], mode_scalars(rows, motion)["mode_loss"]
    assert abs(math.log(found / losses[-1])) < 0.6 * abs(math.log(plain / losses[-1]))


def test_noise_and_slow_growth_leave_the_curvature_as_it_was() -> None:
    motion = Motion(lr=LR, response=RESPONSES["adam"])
    generator = np.random.default_rng(0)
    noise = generator.standard_normal(WINDOW)
    for amplitudes, square in (
        (noise, noise**2),
        (1.05 ** np.arange(WINDOW) * (-1.0) ** np.arange(WINDOW), np.ones(WINDOW)),
        (1.5 ** np.arange(WINDOW) * (-1.0) ** np.arange(WINDOW), 1e9 * np.ones(WINDOW)),
        (1.5 ** np.arange(WINDOW), np.ones(WINDOW)),
    ):
        rows = np.stack([square, amplitudes, np.full(WINDOW, 200.0)], 1)
        assert mode_scalars(rows, motion) == mode_scalars(rows)
