"""Wrappers: looked through where they pass the update on, and otherwise measured at the weights or left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import accelerate
import lightning.pytorch.core.optimizer
import pytest
import pytorch_optimizer
import torch
from torch import nn

from client_sdk.optimizers import kind_of, watched_optimizer, what_is_missing

Train = Callable[..., Any]


class Unhooked(torch.optim.Optimizer):
    """A wrapper that does not initialise torch.optim.Optimizer and averages the weights after each inner step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Return the groups of the inner optimizer."""
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.optimizer.step(closure)
        for parameter in self.param_groups[0]["params"]:
            parameter.mul_(0.9)


@pytest.fixture
def inner() -> torch.optim.AdamW:
    return torch.optim.AdamW([nn.Parameter(torch.ones(3))], lr=0.01)


def test_wrappers_that_pass_the_update_on_are_looked_through(inner: torch.optim.AdamW) -> None:
    accelerated = accelerate.Accelerator(cpu=True).prepare(inner)
    assert watched_optimizer(accelerated).optimizer is inner
    assert watched_optimizer(lightning.pytorch.core.optimizer.LightningOptimizer(inner)).optimizer is inner
    sam = pytorch_optimizer.SAM(inner.param_groups[0]["params"], base_optimizer=torch.optim.AdamW, lr=0.01)
    watched = watched_optimizer(sam)
    assert watched.optimizer is sam.base_optimizer
    assert watched.wrapper is None


def test_sam_moves_as_its_inner_optimizer_does(train: Train) -> None:
    trained = train(lambda p: pytorch_optimizer.SAM(p, base_optimizer=torch.optim.AdamW, lr=0.01))

    for seed in range(4):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))
        trained.optimizer.zero_grad()
        (trained.model(x) - 1).square().mean().backward()
        before = [p.detach().clone() for p in trained.model.parameters()]
        trained.optimizer.first_step(zero_grad=True)
        (trained.model(x) - 1).square().mean().backward()
        pre = trained.measured.register_step_pre_hook(lambda *_: trained.meter.before_step(trained.measured))
        trained.optimizer.second_step()
        pre.remove()
        copied = trained.meter.measure(trained.measured, histograms=False)
        moved = [float((p.detach() - b).norm()) for p, b in zip(trained.model.parameters(), before, strict=True)]
        assert trained.column(copied.measurement(), "update_norm") == pytest.approx(moved, rel=1e-4)
    assert not trained.meter.is_refuted


def test_lookahead_is_measured_at_the_weights(train: Train) -> None:
    trained = train(lambda p: pytorch_optimizer.Lookahead(torch.optim.AdamW(p, lr=0.01), k=3))
    assert kind_of(trained.measured) == "other"
    for seed in range(7):
        measurement = trained.step(seed)
        assert trained.column(measurement, "update_norm") == pytest.approx(trained.moved, rel=1e-4)
        true = math.hypot(*(float(grad.norm()) for grad in trained.gradients))
        assert measurement.scalars["grad_norm"] == pytest.approx(true, rel=1e-5)
    assert "u_rms" not in trained.meter.statistics


def test_a_wrapper_without_hooks_is_watched_inside_and_claims_no_movement(train: Train) -> None:
    trained = train(lambda p: Unhooked(torch.optim.AdamW(p, lr=0.01)))
    assert trained.meter.statistics == ("grad_norm", "weight_norm", "period_two", "nonfinite")
    assert trained.measured is trained.optimizer.optimizer
    said = what_is_missing("other", watched_optimizer(trained.optimizer))
    assert "Unhooked may change the weights" in str(said)
    measurement = trained.step(0)
    assert trained.column(measurement, "grad_norm") == pytest.approx([float(g.norm()) for g in trained.gradients])


def test_an_optimizer_that_merely_has_an_attribute_is_itself(inner: torch.optim.AdamW) -> None:
    inner.base = "adam"  # type: ignore[attr-defined]
    assert watched_optimizer(inner).optimizer is inner
    assert kind_of(inner) == "adam"
