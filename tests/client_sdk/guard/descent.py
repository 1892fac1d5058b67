"""A small training whose second moment goes stale: a linear regression in float64 that Adam solves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Make = Callable[[Any], torch.optim.Optimizer]
STALE_AT = 300
"""Step after which the second moment is too small, as if it had decayed on a plateau. The loss is at rest by then."""
RATIO = 1.03
"""Largest preconditioned curvature over its limit then. The direction grows by 30 % a step."""


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Return the optimizer of most tests."""
    return torch.optim.Adam(parameters, lr=0.05)


class Descent:
    """The training; `steps` is how far it has come."""

    def __init__(self, make: Make = adam, *, inputs: int = 8) -> None:
        generator = torch.Generator().manual_seed(1)
        self.data = torch.randn(40, inputs, generator=generator, dtype=torch.float64)
        self.target = self.data @ torch.randn(inputs, 1, generator=generator, dtype=torch.float64)
        torch.manual_seed(0)
        self.model = nn.Linear(inputs, 1, bias=False, dtype=torch.float64)
        self.optimizer = make(self.model.parameters())
        self.losses: list[float] = []

    def step(self, scale: float = 1.0) -> float:
        """Make one step on the whole data, with a gradient that is ``scale`` times the right one."""
        self.optimizer.zero_grad()
        loss = (self.model(self.data) - self.target).square().mean()
        (loss * scale).backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        return self.losses[-1]

    def go(self, steps: int, log: Callable[[dict[str, float]], object] = lambda scalars: None) -> list[float]:
        """Make some steps, the second moment going stale at `STALE_AT`, and return all losses so far."""
        for _ in range(steps):
            if len(self.losses) == STALE_AT:
                self.make_stale()
            log({"loss": self.step()})
        return self.losses

    def make_stale(self, ratio: float = RATIO) -> None:
        """Scale the second moment so that λ_max of the preconditioned Hessian is ``ratio`` times the limit of Adam."""
        group = self.optimizer.param_groups[0]
        (state,) = self.optimizer.state.values()
        (beta1, beta2), step = group["betas"], float(state["step"])
        hessian = 2.0 * self.data.T @ self.data / len(self.data)
        root = ((state["exp_avg_sq"].flatten() / (1.0 - beta2**step)).sqrt() + group["eps"]).rsqrt()
        curvature = float(torch.linalg.eigvalsh(root[:, None] * hessian * root[None, :])[-1])
        gain = (1.0 - beta1) / (1.0 + beta1) / (1.0 - beta1**step)
        state["exp_avg_sq"].mul_((float(group["lr"]) * gain * curvature / 2.0 / ratio) ** 2)

    @property
    def weights(self) -> list[float]:
        """Weights of the model."""
        return [float(value) for value in self.model.weight.detach().flatten()]


def rise(losses: list[float], since: int = STALE_AT) -> float:
    """Return the largest loss from a step on in units of the one before it."""
    return max(losses[since:]) / losses[since - 1] if all(map(math.isfinite, losses)) else math.inf
