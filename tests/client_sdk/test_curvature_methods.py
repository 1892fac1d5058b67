"""Each method of measuring curvature works where it can, and the next one takes over where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from client_sdk.curvature import Method, Probe
from client_sdk.curvature.hessian import DifferenceHessian, ExactHessian
from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.curvature.sandbox import Sandbox
from client_sdk.optimizers import kind_of
from tests.support.curvature_problem import OPTIMIZERS, OPTIMIZERS_OF_UNKNOWN_LIMIT, Problem, measured

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks


def test_finite_differences_agree_with_double_backward() -> None:
    problem = Problem(OPTIMIZERS["adam"], dtype=torch.float32)
    preconditioner = Preconditioner.read(problem.optimizer, "adam")
    assert preconditioner is not None
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(len(preconditioner.diagonal), generator=generator)
    before = [p.detach().clone() for p in problem.model.parameters()]
    with Sandbox(problem.model, preconditioner.parameters) as sandbox:
        exact = ExactHessian(sandbox, problem.closure, preconditioner).product(direction)
        differences = DifferenceHessian(sandbox, problem.closure, preconditioner).product(direction)
    assert float((exact - differences).norm() / exact.norm()) < 0.01
    assert all(torch.equal(p, old) for p, old in zip(problem.model.parameters(), before, strict=True))


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = 1 - x.tanh() ** 2
        return grad * slope


def _tanh(x: Tensor) -> Tensor:
    result: Tensor = _OnceDifferentiable.apply(x)  # type: ignore[no-untyped-call]
    return result


def _without_second_derivative(problem: Problem) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        hidden = _tanh(problem.model[0](problem.x))
        hidden = _tanh(problem.model[2](hidden))
        return F.mse_loss(problem.model[4](hidden), problem.y)

    return closure


def test_models_without_second_derivative_fall_back_to_differences() -> None:
    problem = Problem(OPTIMIZERS["adam"])
    lambda_max, lambda_grad = problem.expected()
    problem.closure = _without_second_derivative(problem)  # type: ignore[method-assign]
    values = problem.measure(times=4)
    assert values["lambda_grad"] == pytest.approx(lambda_grad, rel=0.01)
    assert values["lambda_max"] == pytest.approx(lambda_max, rel=0.01)
    assert problem.warner.counts == {"finite_differences": 1}


def _probe(problem: Problem, method: Method) -> Probe:
    kind = kind_of(problem.optimizer)
    return Probe(problem.model, problem.optimizer, kind, every=1, warner=problem.warner, method=method)


def test_short_floats_without_second_derivative_are_measured_by_losses_alone() -> None:
    problem = Problem(OPTIMIZERS["sgd"], dtype=torch.bfloat16, steps=3)
    found = measured(problem, _without_second_derivative(problem), 40)
    assert problem.warner.counts == {"curvature_forward": 1}
    assert "cannot be differentiated twice" in (problem.warner.last_error or "")
    assert not {"lambda_max", "lambda_grad"} & set(found)


def test_a_method_that_was_chosen_is_not_replaced() -> None:
    problem = Problem(OPTIMIZERS["adam"])
    problem.probe = _probe(problem, "exact")
    found = measured(problem, _without_second_derivative(problem), 20)
    assert found == {}
    assert problem.warner.counts == {"curvature_unsupported": 1}
    assert "cannot be differentiated twice" in (problem.warner.last_error or "")


def test_no_product_is_made_where_losses_alone_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExactHessian, "product", lambda *_: pytest.fail("a product was made"))
    problem = Problem(OPTIMIZERS["adam"])
    problem.probe = _probe(problem, "forward")
    found = measured(problem, problem.closure, 40)
    assert {"critical_sharpness", "lambda_step"} <= set(found)
    assert problem.warner.counts == {}


def test_memory_that_is_too_small_is_named_and_the_next_methods_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    problem = Problem(OPTIMIZERS["adam"])
    monkeypatch.setattr(ExactHessian, "product", product)
    assert "lambda_max" in measured(problem, problem.closure, 20)
    assert problem.warner.counts == {"finite_differences": 1}
    monkeypatch.setattr(DifferenceHessian, "product", product)
    assert "critical_sharpness" in measured(problem, problem.closure, 60)
    assert problem.warner.counts == {"finite_differences": 1, "curvature_forward": 1}


def test_nothing_is_measured_where_curvature_is_off() -> None:
    problem = Problem(OPTIMIZERS["adam"])
    problem.probe = _probe(problem, "off")
    assert measured(problem, lambda: pytest.fail("the closure was called"), 20) == {}


def test_unknown_optimizers_are_named_once() -> None:
    problem = Problem(OPTIMIZERS_OF_UNKNOWN_LIMIT["sign"])
    found = []
    for step in range(30):
        if problem.probe.is_used:
            problem.probe.before_step(0.01)
        problem.step()
        copied = problem.probe.measure(step, problem.closure, lr=0.01)
        found.append({} if copied is None else copied.scalars())
    assert problem.warner.counts == {"curvature_unsupported": 1}
    names = {name for scalars in found for name in scalars}
    assert names == {"lambda_step", "critical_sharpness", "critical_sharpness_error"}
    assert "SignDescent" in (problem.warner.last_error or "")
