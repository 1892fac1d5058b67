"""An optimizer that is no longer used is named once, and nothing of it is recorded any more."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client_sdk.watch import watch
from tests.support.logged import MakeRun
from tests.support.logged import kept as records

torch.set_num_threads(1)


class TwoSteps(torch.optim.Optimizer):
    """An optimizer that is moved by methods of its own, as SAM is, and never by `step`."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def first_step(self) -> None:
        self._move(0.1)

    @torch.no_grad()
    def second_step(self) -> None:
        self._move(-0.2)

    def _move(self, size: float) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad, alpha=size)
                parameter.grad = None

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise NotImplementedError


def problem() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    inputs = torch.randn(64, 6)
    targets = inputs[:, :4].sin()
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))

    def loss() -> Tensor:
        return F.mse_loss(model(inputs), targets)

    return model, loss


def test_a_replaced_optimizer_is_named_and_its_curvature_stops(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    model, loss_of = problem()
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    run = make_run()
    watch(run, model, optimizer, every=1, curvature_every=2, budget=math.inf)
    for step in range(40):
        if step == 10:
            optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        run.log({"loss": loss}, step=step, closure=loss_of)
    found = records(run)
    for name in ("lr", "stability_limit", "grad_norm"):
        assert [record.step for record in found if name in record.scalars] == list(range(10))
    assert max(record.step for record in found if "lambda_max" in record.scalars) < 10
    assert dict(run.status().warnings) == {"no_steps": 1}
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "AdamW makes no steps" in warning
    assert "watch(model, the optimizer whose step() is called)" in warning


def test_an_optimizer_that_moves_by_other_methods_is_named(make_run: MakeRun) -> None:
    model, loss_of = problem()
    optimizer = TwoSteps(model.parameters())
    run = make_run()
    watch(run, model, optimizer)
    for step in range(30):
        loss = loss_of()
        loss.backward()
        optimizer.first_step()
        loss_of().backward()
        optimizer.second_step()
        run.log({"loss": loss}, step=step)
    found = records(run)
    assert run.status().warnings["no_steps"] == 1
    assert not any("lr" in record.scalars for record in found)
    assert len(found) == 30


def test_evaluation_and_accumulation_are_no_disuse(make_run: MakeRun) -> None:
    model, loss_of = problem()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = make_run()
    watch(run, model, optimizer)
    for step in range(3):
        for micro in range(64):
            loss = loss_of() / 64
            loss.backward()
            run.log({"loss": loss}, step=64 * step + micro)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for _ in range(300):
                run.log({"val/loss": loss_of()}, step=64 * step + 63)
    assert run.status().warnings == {}


def test_an_optimizer_that_is_used_again_is_recorded_again(make_run: MakeRun) -> None:
    model, loss_of = problem()
    first, second = torch.optim.SGD(model.parameters(), 0.1), torch.optim.SGD(model.parameters(), 0.01)
    run = make_run()
    watch(run, model, first, every=1)
    for step in range(40):
        optimizer = second if 5 <= step < 30 else first
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        run.log({"loss": loss}, step=step)
    measured = [record.step for record in records(run) if record.block is not None]
    assert measured[:5] == [0, 1, 2, 3, 4]
    assert measured[-9:] == list(range(31, 40))
