"""A sandbox restores everything, whatever the closure did."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client_sdk.curvature.sandbox import ClosureError, Sandbox


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_random_numbers_are_drawn_as_if_nothing_happened() -> None:
    model = net()
    x = torch.randn(6, 4)

    def closure() -> Tensor:
        random.random()
        np.random.rand()
        loss: Tensor = model(x).sum() + torch.rand(())
        return loss

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = draw()
    seed()
    with Sandbox(model, list(model.parameters())) as sandbox:
        first, second = sandbox.evaluate(closure), sandbox.evaluate(closure)
    assert torch.equal(first, second), "every evaluation draws the same dropout mask"
    assert draw() == expected


def test_batch_norm_does_not_see_the_evaluation() -> None:
    model = net()
    before = state_of(model)
    with Sandbox(model, list(model.parameters())) as sandbox:
        sandbox.evaluate(lambda: model(torch.randn(6, 4)).sum())
    for name, value in state_of(model).items():
        assert torch.equal(value, before[name]), name


def test_replaced_buffers_are_restored() -> None:
    model = net()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    buffer = norm.running_mean

    def closure() -> Tensor:
        norm.running_mean = torch.ones(8)
        loss: Tensor = model(torch.randn(6, 4)).sum()
        return loss

    with Sandbox(model, list(model.parameters())) as sandbox:
        sandbox.evaluate(closure)
    assert norm.running_mean is buffer


def test_gradients_modes_and_flags_survive_a_closure_that_trains() -> None:
    model = net()
    model(torch.randn(6, 4)).sum().backward()
    grads = [parameter.grad for parameter in model.parameters()]
    values = [None if grad is None else grad.clone() for grad in grads]
    last = list(model.parameters())[-1]

    def closure() -> Tensor:
        model.eval()
        last.requires_grad_(False)
        model.zero_grad(set_to_none=False)
        loss: Tensor = model(torch.randn(6, 4)).sum()
        loss.backward(retain_graph=True)
        return loss

    with Sandbox(model, list(model.parameters())) as sandbox:
        sandbox.evaluate(closure)
    assert all(module.training for module in model.modules())
    assert last.requires_grad
    for parameter, grad, value in zip(model.parameters(), grads, values, strict=True):
        assert parameter.grad is grad
        assert grad is not None
        assert value is not None
        assert torch.equal(grad, value)


def test_everything_is_restored_when_the_closure_raises() -> None:
    model = net()
    before = state_of(model)
    torch.manual_seed(3)
    expected = torch.get_rng_state()

    def closure() -> Tensor:
        model(torch.randn(6, 4))
        raise KeyError("no batch left")

    with pytest.raises(ClosureError, match="KeyError"), Sandbox(model, list(model.parameters())) as sandbox:
        sandbox.evaluate(closure)
    assert torch.equal(torch.get_rng_state(), expected)
    for name, value in state_of(model).items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_log_inside_a_context_without_gradients_still_gets_a_graph(context: type) -> None:
    model = net()
    with context():
        with Sandbox(model, list(model.parameters())) as sandbox:
            assert sandbox.evaluate(lambda: model(torch.ones(6, 4)).sum()).requires_grad
        assert not torch.is_grad_enabled()


def test_autocast_stays_as_it_was() -> None:
    model = net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with Sandbox(model, list(model.parameters())) as sandbox:
            assert not torch.is_autocast_enabled("cpu"), "the region applies to the closure alone"
            seen: list[bool] = []

            def closure() -> torch.Tensor:
                seen.append(torch.is_autocast_enabled("cpu"))
                assert model(torch.ones(6, 4)).dtype == torch.bfloat16
                loss: torch.Tensor = model(torch.ones(6, 4)).float().sum()
                return loss

            assert sandbox.evaluate(closure).requires_grad
            assert seen == [True]
            assert not torch.is_autocast_cache_enabled()
        assert torch.is_autocast_cache_enabled()
        assert torch.is_autocast_enabled("cpu")
