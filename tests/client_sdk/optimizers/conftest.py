"""A small network, and its training under a meter, for the tests of optimizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from client_sdk.layers import map_layers
from client_sdk.measurement import Measurement
from client_sdk.optimizers import kind_of, watched_optimizer
from client_sdk.stats import Meter

torch.set_num_threads(1)


@dataclass(kw_only=True)
class Trained:
    """A training under a meter."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        watched = watched_optimizer(self.optimizer)
        self.measured = watched.optimizer
        kind = kind_of(self.measured) if watched.wrapper is None else "other"
        layers = map_layers(self.model, self.measured)
        self.meter = Meter(self.measured, kind, layers, sees_movement=watched.wrapper is None)
        self.gradients: list[Tensor] = []
        self.before: list[Tensor] = []

    def step(self, seed: int, move: Callable[[], object] | None = None) -> Measurement:
        """Make one step by ``move``, by default that of the optimizer, and return its measurement."""
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed)).to(self.dtype)
        self.optimizer.zero_grad()
        (self.model(x) - 1).square().mean().backward()
        self.gradients = [p.grad.detach().clone() for p in self.model.parameters() if p.grad is not None]
        self.before = [p.detach().clone() for p in self.model.parameters()]
        self.meter.before_step(self.measured)
        (move or self.optimizer.step)()
        copied = self.meter.measure(self.measured, histograms=True)
        assert copied is not None
        return copied.measurement()

    def column(self, measurement: Measurement, name: str) -> list[float]:
        """Return one statistic of every layer."""
        assert measurement.block is not None
        return [float(value) for value in measurement.block[:, self.meter.statistics.index(name)]]

    @property
    def moved(self) -> list[float]:
        """Return ‖Δw‖ of every parameter in the last step, from copies of the weights."""
        return [
            float((p.detach().double() - before.double()).norm())
            for p, before in zip(self.model.parameters(), self.before, strict=True)
        ]


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return the network, which is always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3)).to(dtype)


Train = Callable[..., Trained]


@pytest.fixture
def train() -> Train:
    """Return a function that puts an optimizer, which a function of the parameters makes, under a meter."""

    def trained(
        make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        dtype: torch.dtype = torch.float32,
        model: nn.Module | None = None,
    ) -> Trained:
        own = net(dtype) if model is None else model
        return Trained(model=own, optimizer=make(list(own.parameters())), dtype=dtype)

    return trained
