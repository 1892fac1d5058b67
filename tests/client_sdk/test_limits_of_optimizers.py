"""Below the stability limit optimizers converge on a quadratic loss, and above it they diverge."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client_sdk.optimizers import oscillation_gain, stability_limit

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks


@pytest.mark.parametrize(
    ("make", "gain"),
    [
        (lambda p, lr: torch.optim.SGD(p, lr=lr), 1.0),
        (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9), 1 / 1.9),
        (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, dampening=0.9), 0.1 / 1.9),
        (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True), 2.8 / 1.9),
    ],
    ids=["sgd", "heavy-ball", "ema", "nesterov"],
)
@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_limits_separate_convergence_from_divergence(
    make: Callable[[Any, float], torch.optim.Optimizer], gain: float, ratio: float
) -> None:
    curvature = 3.0
    lr = ratio * 2.0 / (gain * curvature)  # so that λ·gain = ratio · 2/η
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = make([weight], lr)
    for _ in range(1500):
        optimizer.zero_grad()
        (0.5 * curvature * weight**2).sum().backward()
        optimizer.step()
    assert (abs(float(weight.detach())) > 1e3) == (ratio > 1)


@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_adams_limit_separates_convergence_from_divergence(ratio: float) -> None:
    lr, curvature, beta2, t = 0.01, 1.0, 1 - 1e-12, 1e9
    root = (0.1 / 1.9) * curvature / (ratio * stability_limit(lr))  # the √v̂ for which λ = ratio · 2/η
    weight = nn.Parameter(torch.full((1,), 1e-12, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=lr, betas=(0.9, beta2), eps=0.0)
    optimizer.state[weight] = {
        "step": torch.tensor(t, dtype=torch.float64),
        "exp_avg": torch.zeros_like(weight),
        "exp_avg_sq": torch.full_like(weight, root**2 * -math.expm1(t * math.log1p(-1e-12))),
    }
    for _ in range(60):  # few enough that v does not react
        optimizer.zero_grad()
        (0.5 * curvature * weight**2).sum().backward()
        optimizer.step()
    assert (abs(float(weight.detach())) > 1e-9) == (ratio > 1)


@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_decoupled_weight_decay_lowers_the_limit(ratio: float) -> None:
    lr, decay = 0.1, 5.0
    curvature = ratio * stability_limit(lr, decay)
    weight = 1.0
    for _ in range(1500):
        weight = weight * (1 - lr * decay) - lr * curvature * weight
    assert (abs(weight) > 1e3) == (ratio > 1)


def test_gains_are_the_published_factors() -> None:
    one = np.ones(1)
    warm = 1 - 0.9**7
    assert oscillation_gain(one, 0 * one, 1.0, 0.0) == 1
    assert oscillation_gain(0 * one, one, 1.0, 0.9) == pytest.approx(1 / 1.9)
    assert oscillation_gain(one, 0.9 * one, 1.0, 0.9) == pytest.approx(2.8 / 1.9)
    assert oscillation_gain(0 * one, one, 0.1, 0.9) == pytest.approx(0.1 / 1.9)
    assert oscillation_gain(0 * one, one / warm, 0.1, 0.9) == pytest.approx((1 / warm) * (0.1 / 1.9))


def test_limit_is_two_over_eta() -> None:
    assert stability_limit(0.01) == 200.0
    assert stability_limit(0.01, decoupled_weight_decay=0.1) == pytest.approx(199.9)
    assert stability_limit(0.0) == math.inf
