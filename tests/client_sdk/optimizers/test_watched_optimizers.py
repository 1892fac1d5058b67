"""`watch` with optimizers that change gradients, scale their update, have no learning rate, or wrap another one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import schedulefree
import torch
import torch.nn.functional as F
import transformers.optimization
from torch import Tensor, nn

from client_sdk.protocol import Record
from client_sdk.run import Run
from client_sdk.watch import watch
from tests.support.logged import MakeRun, kept, last_layout

torch.set_num_threads(1)


class Scaled(torch.optim.Adam):
    """An Adam that makes one and a half steps."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in parameters]
        super().step(closure)
        for parameter, old in zip(parameters, before, strict=True):
            parameter.add_(parameter - old, alpha=0.5)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, run: Run, steps: int, first: int = 0) -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    y = x[:, :4].sin()

    def loss_of() -> Tensor:
        return F.mse_loss(model(x), y)

    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        run.log({"loss": loss}, step=step, closure=loss_of)


def column(run: Run, record: Record, name: str) -> list[float]:
    layout = last_layout(run)
    assert record.block is not None
    block = np.frombuffer(record.block, "<f4").reshape(len(layout.layers), len(layout.statistics))
    return [float(value) for value in block[:, layout.statistics.index(name)]]


def test_a_scaled_update_is_said_once_and_has_no_limit(make_run: MakeRun) -> None:
    torch.optim.Adam(net().parameters())  # from now on torch calls the hooks in Adam's step too, inside that of Scaled
    run, model = make_run(), net()
    optimizer = Scaled(model.parameters(), lr=0.01)
    watch(run, model, optimizer, every=1, curvature_every=1, budget=math.inf)
    trained = 0
    while "update_rule" not in run.status().warnings and trained < 500:  # a thread may read the check's result
        fit(model, optimizer, run, 1, trained)
        trained += 1
    fit(model, optimizer, run, 20, trained)
    assert run.status().warnings["update_rule"] == 1
    records = kept(run)
    assert not any("lambda_max" in record.scalars for record in records[trained:])
    norms = [column(run, record, "update_norm") for record in records]
    assert all(map(math.isnan, norms[0]))
    assert all(map(math.isfinite, norms[-1]))


def test_a_nested_step_is_one_step_also_after_one_that_raised(make_run: MakeRun) -> None:
    class Faulty(torch.optim.Adam):
        """An Adam that raises in some steps, and calls the step of its parent in the others."""

        fails = False

        def step(self, closure: Any = None) -> Any:
            if self.fails:
                raise RuntimeError
            return super().step(closure)

    torch.optim.Adam(net().parameters())
    run, model = make_run(), net()
    optimizer = Faulty(model.parameters(), lr=0.01)
    watch(run, model, optimizer, every=1)
    fit(model, optimizer, run, 3)
    optimizer.fails = True
    with pytest.raises(RuntimeError):
        optimizer.step()
    optimizer.fails = False
    fit(model, optimizer, run, 10, 3)
    records = kept(run)
    assert [record.block is not None for record in records] == [True] * 13
    assert run.status().warnings == {}


def test_schedule_free_has_no_gradient_norm_at_its_first_step(make_run: MakeRun) -> None:
    run, model = make_run(), net()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.01)
    optimizer.train()
    watch(run, model, optimizer, every=1)
    fit(model, optimizer, run, 4)
    records = kept(run)
    assert ["grad_norm" in record.scalars for record in records] == [False, True, True, True]
    assert records[1].scalars["grad_norm"] < 1, "the normalised gradient of the package is some 10 times larger"


def test_an_optimizer_without_a_learning_rate_is_watched(make_run: MakeRun) -> None:
    run, model = make_run(), net()
    optimizer = transformers.optimization.Adafactor(model.parameters())
    watch(run, model, optimizer, every=1)
    fit(model, optimizer, run, 4)
    records = kept(run)
    assert all("lr" not in record.scalars and "stability_limit" not in record.scalars for record in records)
    assert all(map(math.isfinite, column(run, records[-1], "update_norm")))
    assert "measure" not in run.status().warnings


def test_sam_is_measured_at_its_inner_step(make_run: MakeRun) -> None:
    run, model = make_run(), net()
    optimizer = pytorch_optimizer.SAM(model.parameters(), base_optimizer=torch.optim.AdamW, lr=0.01)
    watch(run, model, optimizer, every=1)
    x = torch.ones(4, 6)
    for step in range(5):
        loss = model(x).square().mean()
        loss.backward()
        optimizer.first_step(zero_grad=True)
        model(x).square().mean().backward()
        optimizer.second_step(zero_grad=True)
        run.log({"loss": loss}, step=step)
    assert all(record.block is not None for record in kept(run))
    assert run.status().warnings == {}
