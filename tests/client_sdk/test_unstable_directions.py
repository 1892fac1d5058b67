"""The loss in the unstable directions is exact on quadratics, and its growth is that of the optimizer's dynamics."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import client_sdk
from client_sdk.curvature import Probe, unstable_directions
from client_sdk.curvature.mode_reading import MIN_STEPS, WINDOW, mode_scalars
from client_sdk.curvature.spectrum import RitzPair
from client_sdk.curvature.unstable_directions import UnstableDirections
from client_sdk.warner import Warner
from tests.support.logged import kept

torch.set_num_threads(1)
CURVATURES = (10.0, 3.0, 0.2, 0.1)


class Quadratic(nn.Module):
    """The loss Σ λ·w²/2 with the curvatures above, over two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([0.5, -0.2], dtype=torch.float64))
        self.second = nn.Parameter(torch.tensor([0.7, 0.3], dtype=torch.float64))

    def parts(self) -> Tensor:
        """Return the loss that each coordinate holds, [4]."""
        weights = torch.cat([self.first, self.second])
        return torch.tensor(CURVATURES, dtype=torch.float64) * weights.square() / 2

    def forward(self) -> Tensor:
        return self.parts().sum()


def scalars_of(directions: UnstableDirections) -> dict[str, float]:
    copied = directions.copy()
    assert copied is not None
    return copied.scalars()


@pytest.mark.parametrize("at_once", [1, 2**20])
def test_mode_loss_is_the_loss_that_the_top_directions_hold(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unstable_directions, "AT_ONCE", at_once)
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    probe = Probe(model, optimizer, "sgd", every=1, warner=Warner())
    assert probe.directions.copy() is None
    for step in range(20):
        optimizer.zero_grad()
        model().backward()
        held = model.parts().detach()
        probe.directions.follow()
        optimizer.step()
        if probe.directions.is_known:
            assert scalars_of(probe.directions)["mode_loss"] == pytest.approx(float(held[:2].sum()), rel=1e-9)
        probe.measure(step * 100, model, lr=0.01)
    assert probe.directions.is_known


def test_growth_is_that_of_gradient_descent_over_the_limit() -> None:
    model = Quadratic()
    rate = 2.1 / CURVATURES[0]  # the first coordinate is multiplied by −1.1 at every step
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    probe = Probe(model, optimizer, "sgd", every=1, warner=Warner())
    for step in range(60):
        optimizer.zero_grad()
        model().backward()
        probe.directions.follow()
        optimizer.step()
        if step < 2:
            probe.measure(step * 100, model, lr=rate)
    found = scalars_of(probe.directions)
    assert found["mode_growth"] == pytest.approx(math.log(1.1), rel=1e-3)
    assert found["mode_alternation"] == 1.0
    assert found["mode_share"] == pytest.approx(1.0, abs=1e-3)


def test_a_refreshed_direction_keeps_its_sign() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    one = torch.ones(())
    directions = UnstableDirections()
    for vector in ([1.0, 0.0, 0.0], [-0.9, 0.1, 0.0]):
        directions.replace([RitzPair(value=one, vector=torch.tensor(vector))], torch.ones(3), (parameter,))
        for _ in range(MIN_STEPS):
            parameter.grad = torch.tensor([2.0, 0.0, 0.0])
            directions.follow()
    assert scalars_of(directions)["mode_alternation"] == 0.0


def test_parameters_without_gradient_count_as_zero() -> None:
    parameters = (nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2)))
    directions = UnstableDirections()
    pair = RitzPair(value=torch.tensor(2.0), vector=torch.full((4,), 0.5))
    directions.replace([pair], torch.ones(4), parameters)
    parameters[1].grad = torch.tensor([3.0, 1.0])
    directions.follow()
    assert scalars_of(directions) == {"mode_loss": pytest.approx(1.0), "mode_share": pytest.approx(0.4)}


def test_readings_without_evidence_are_absent() -> None:
    assert mode_scalars(np.array([[1.0, 0.5, -2.0]])) == {}, "no direction has a positive curvature"
    assert mode_scalars(np.array([[1.0, np.nan, 2.0]])) == {}
    short = mode_scalars(np.array([[1.0, 0.5, 2.0]] * (MIN_STEPS - 1)))
    assert set(short) == {"mode_loss", "mode_share"}
    still = mode_scalars(np.array([[1.0, 0.0, 2.0]] * WINDOW))
    assert still == {"mode_loss": 0.0, "mode_share": 0.0}, "nothing that is zero grows"


def test_log_reports_the_mode_at_every_step_after_the_first_probes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(60, 4)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def batch_loss() -> Tensor:
        loss: Tensor = (model(inputs) - inputs.sum(1, keepdim=True).sin()).square().mean()
        return loss

    run = client_sdk.init(project="p", mode="offline", directory=str(tmp_path))
    client_sdk.watch(model, optimizer, every=1, curvature_every=10, budget=math.inf)
    for step in range(40):
        optimizer.zero_grad()
        loss = batch_loss()
        loss.backward()
        optimizer.step()
        client_sdk.log({"loss": loss}, step=step, closure=batch_loss)
    steps = [record.step for record in kept(run) if "mode_loss" in record.scalars]
    assert run.status().warnings == {}
    assert set(range(12, 40)) <= set(steps), "the readings of the first probes may be too uncertain"
