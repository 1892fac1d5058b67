"""Closures that cannot be used are named, counted and backed off from, and odd losses are measured as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client_sdk.curvature import Probe
from client_sdk.optimizers import kind_of
from client_sdk.warner import Warner
from tests.support.curvature_problem import OPTIMIZERS, OPTIMIZERS_OF_UNKNOWN_LIMIT, Problem

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks


def _went_backward(problem: Problem) -> Tensor:
    problem.optimizer.zero_grad()
    loss = problem.closure()
    loss.backward()
    return loss


CLOSURES: dict[str, tuple[Callable[[Problem], Any], str]] = {
    "raises": (lambda problem: 1 / 0, "ZeroDivisionError"),
    "number": (lambda problem: float(problem.closure()), "returned float"),
    "nothing": (lambda problem: None, "returned NoneType"),
    "vector": (lambda problem: problem.model(problem.x), "shape"),
    "no-graph": (lambda problem: problem.closure().detach(), "no graph"),
    "backward": (_went_backward, "must not call backward"),
    "unrelated": (lambda problem: torch.ones((), requires_grad=True) * 2, "does not depend"),
}


@pytest.mark.parametrize("name", CLOSURES)
def test_unusable_closures_cause_one_warning_and_back_off(name: str) -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=3)
    closure, message = CLOSURES[name]
    grads = [None if p.grad is None else p.grad.clone() for p in problem.model.parameters()]
    tried = 0

    def counted() -> Any:
        nonlocal tried
        tried += 1
        return closure(problem)

    copies = [problem.probe.measure(step, counted, lr=0.01) for step in range(300)]
    assert 1 < tried < 20
    for parameter, grad in zip(problem.model.parameters(), grads, strict=True):
        assert parameter.grad is not None
        assert grad is not None
        assert torch.equal(parameter.grad, grad)
    assert copies == [None] * 300
    assert problem.warner.counts == {"closure": tried}
    assert message in (problem.warner.last_error or "")


def test_nan_losses_are_not_reported_and_counted() -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=3)
    first = problem.probe.measure(0, lambda: problem.closure() * float("nan"), lr=0.01)
    assert first is not None
    assert first.scalars() == {}
    problem.probe.measure(1, problem.closure, lr=0.01)
    assert problem.warner.counts == {"closure_nonfinite": 1}
    later = problem.probe.measure(40, problem.closure, lr=0.01)
    assert later is not None
    assert "lambda_max" in later.scalars()


def test_a_closure_of_another_batch_is_measured_on_that_batch() -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=20)
    other = Problem(OPTIMIZERS["adam"], steps=0)
    other.model, other.optimizer = problem.model, problem.optimizer
    other.x, other.y = 2.0 * torch.randn_like(problem.x), torch.ones_like(problem.y)
    trained, wanted = problem.expected(), other.expected()
    problem.closure = other.closure  # type: ignore[method-assign]
    found = problem.measure(times=12)
    assert (found["lambda_max"], found["lambda_grad"]) == pytest.approx(wanted, rel=2e-4)
    assert found["lambda_grad"] != pytest.approx(trained[1], rel=0.5)
    assert problem.warner.counts == {}


def test_a_closure_with_side_effects_is_measured_as_if_it_had_none() -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=20)
    plain = problem.closure
    wanted = problem.expected()[0]
    weight = problem.model.get_parameter("0.weight")

    def wild() -> Tensor:
        problem.optimizer.zero_grad()
        problem.model.eval()
        loss = plain()
        weight.data.mul_(0.5)
        torch.rand(3)
        return loss

    problem.closure = wild  # type: ignore[method-assign]
    random, bits, grad = torch.get_rng_state(), weight.detach().clone(), weight.grad
    assert problem.measure(times=1)["lambda_max"] > 0
    assert torch.equal(weight, bits)
    assert weight.grad is grad
    assert problem.model.training
    assert torch.equal(torch.get_rng_state(), random)
    problem.closure = plain  # type: ignore[method-assign]
    assert problem.measure(times=12)["lambda_max"] == pytest.approx(wanted, rel=2e-4)


def test_where_all_curvature_is_negative_the_largest_is_the_smallest_in_magnitude() -> None:
    weight = nn.Parameter(torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64))
    curvatures = torch.tensor([-1.0, -4.0, -9.0], dtype=torch.float64)
    model = nn.Module()
    model.register_parameter("weight", weight)
    warner = Warner()
    optimizer = torch.optim.SGD([weight], lr=0.01)
    probe = Probe(model, optimizer, kind_of(optimizer), every=1, warner=warner)
    found: dict[str, float] = {}
    for step in range(0, 1000, 100):
        copied = probe.measure(step, lambda: (curvatures * weight.square()).sum() / 2, lr=0.01)
        assert copied is not None
        found |= copied.scalars()
    assert found["lambda_max"] == pytest.approx(-1.0, rel=1e-6)
    assert found["stability_ratio"] == pytest.approx(-0.005, rel=1e-6)
    assert found["lambda_grad"] < 0
    assert warner.counts == {}


def test_a_loss_whose_gradient_is_zero_is_noted_and_has_no_curvature() -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=3)
    copied = problem.probe.measure(0, lambda: 0.0 * problem.closure(), lr=0.01)
    assert copied is not None
    assert copied.scalars() == {}
    later = [problem.probe.measure(step, problem.closure, lr=0.01) for step in range(1, 60)]
    assert any("lambda_max" in copied.scalars() for copied in later if copied is not None)
    assert problem.warner.counts == {"flat_loss": 1}


@pytest.mark.parametrize("name", ["adam", "sgd", "sign"])
def test_nothing_is_measured_while_a_warm_up_has_the_learning_rate_zero(name: str) -> None:
    problem = Problem((OPTIMIZERS | OPTIMIZERS_OF_UNKNOWN_LIMIT)[name], steps=3)
    group = problem.optimizer.param_groups[0]
    found = []
    for step in range(60):
        lr = group["lr"] = 0.001 * max(0, step - 9)
        problem.probe.before_step(lr)
        problem.step()
        copied = problem.probe.measure(step, problem.closure, lr=lr)
        found.append({} if copied is None else copied.scalars())
    assert found[:10] == [{}] * 10
    wanted = "critical_sharpness" if name == "sign" else "lambda_max"
    values = [scalars[wanted] for scalars in found if wanted in scalars]
    assert len(values) >= 3
    assert all(math.isfinite(value) for value in values)
    assert set(problem.warner.counts) <= {"curvature_unsupported"}


def test_a_loss_in_bfloat16_is_measured_within_its_error() -> None:
    problem = Problem(OPTIMIZERS["adam"], steps=20, dtype=torch.float32)
    wanted = problem.expected()[0]
    plain = problem.closure
    problem.closure = lambda: plain().bfloat16()  # type: ignore[method-assign]
    values: dict[str, float] = {}
    for step in range(100, 1200, 100):
        copied = problem.probe.measure(step, problem.closure, lr=0.01)
        assert copied is not None
        values |= copied.scalars()
    assert abs(values["lambda_max"] / wanted - 1) <= values["lambda_max_error"]
    assert values["lambda_max_error"] < 0.1
    assert problem.warner.counts == {}
