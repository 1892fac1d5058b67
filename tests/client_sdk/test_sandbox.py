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


def test_an_evaluation_uses_the_kernels_of_the_one_before() -> None:
    model = net()
    seen: list[bool] = []

    def closure() -> Tensor:
        seen.append(torch.backends.cuda.flash_sdp_enabled())
        loss: Tensor = model(torch.ones(6, 4)).sum()
        return loss

    with Sandbox(model, []) as sandbox:
        assert sandbox.evaluate(closure).requires_grad
        assert not sandbox.evaluate(closure, derivatives=0).requires_grad
        assert sandbox.evaluate(closure).requires_grad
        assert sandbox.evaluate(closure, derivatives=2).requires_grad
        assert sandbox.evaluate(closure).requires_grad
    assert seen == [False, True, True, False, False]
    assert torch.backends.cuda.flash_sdp_enabled()


def test_every_evaluation_starts_from_the_same_buffers() -> None:
    model = net()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.eval()
    x = torch.randn(6, 4)

    def closure() -> Tensor:
        loss: Tensor = model(x).square().mean()
        norm.running_mean = torch.randn(8)
        norm.momentum = 0.5
        return loss

    with Sandbox(model, []) as sandbox:
        losses = [sandbox.evaluate(closure, derivatives=0) for _ in range(3)]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


def test_steps_of_the_optimizer_are_refused_and_those_of_others_are_not() -> None:
    model, other = net(), nn.Linear(2, 1)
    before = state_of(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    theirs = torch.optim.SGD(other.parameters(), lr=0.1)

    def closure() -> Tensor:
        other(torch.ones(1, 2)).sum().backward()
        theirs.step()
        loss: Tensor = model(torch.ones(6, 4)).sum()
        loss.backward(retain_graph=True)
        optimizer.step()
        return loss

    weight = other.weight.detach().clone()
    with pytest.raises(ClosureError, match="step of the optimizer"), Sandbox(model, []) as sandbox:
        sandbox.evaluate(closure)
    assert not torch.equal(other.weight, weight)
    assert not optimizer.state
    for name, value in state_of(model).items():
        assert torch.equal(value, before[name]), name
    optimizer.zero_grad()
    model(torch.ones(6, 4)).sum().backward()
    optimizer.step()
    assert optimizer.state


def test_weights_that_the_closure_changes_are_restored() -> None:
    model = net()
    before = state_of(model)

    def closure() -> Tensor:
        for parameter in model.parameters():
            parameter.data.clamp_(-0.01, 0.01)
        loss: Tensor = model(torch.ones(6, 4)).sum()
        return loss

    with Sandbox(model, []) as sandbox:
        sandbox.evaluate(closure)
    for name, value in state_of(model).items():
        assert torch.equal(value, before[name]), name


def test_weights_can_be_placed_and_have_their_bits_again() -> None:
    model = net()
    first = model[0]
    assert isinstance(first, nn.Linear)
    before, version = first.weight.detach().clone(), first.weight._version
    with Sandbox(model, []) as sandbox:
        sandbox.place([first.weight], [torch.zeros(8, 4)])
        assert not first.weight.any()
        assert torch.equal(sandbox.saved(first.weight), before)
    assert torch.equal(first.weight, before)
    assert first.weight._version == version


def test_too_little_memory_is_not_the_closures_fault() -> None:
    model = net()

    def closure() -> Tensor:
        raise torch.OutOfMemoryError("64 GiB")

    with pytest.raises(torch.OutOfMemoryError, match="64 GiB"), Sandbox(model, []) as sandbox:
        sandbox.evaluate(closure)
