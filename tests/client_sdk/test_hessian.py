"""Products with the Hessian agree with float64 double backward, on models of every kind, and say where they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from client_sdk.curvature.hessian import CoarseWeightsError, DifferenceHessian, ExactHessian, NoSecondDerivativeError
from client_sdk.curvature.sandbox import ClosureError
from tests.support.hessian_cases import Case, convolutional_net, gpt, like, tanh_net

torch.set_num_threads(1)


@pytest.mark.parametrize("steps", [2, 150])
@pytest.mark.parametrize("make", [tanh_net, gpt, convolutional_net])
def test_products_agree_with_float64(make: Callable[..., Case], steps: int) -> None:
    case = make(steps=steps)
    vector = case.direction()
    assert case.error(case.exact(vector), vector) < 1e-4
    difference = case.difference(vector)
    assert case.error(difference, vector) < 0.1, "rounding of the gradients, in all directions"
    assert float(vector @ difference) == pytest.approx(float(vector.double() @ case.expected(vector)), rel=0.01)


def test_differences_at_weights_of_zero() -> None:
    case = tanh_net(steps=1)
    for parameter in case.parameters:
        parameter.data.zero_()
    vector = case.direction()
    assert case.error(case.difference(vector), vector) < 0.02


def test_differences_of_float64_are_nearly_exact() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 4, dtype=torch.float64)
    case = Case(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double(), lambda m: m(x).square().mean())
    vector = case.direction()
    assert case.error(case.difference(vector), vector) < 1e-7


@pytest.mark.parametrize("reentrant", [False, True])
def test_differences_work_through_checkpointing(reentrant: bool) -> None:
    case = gpt(reentrant=reentrant)
    vector = gpt().direction()
    assert case.error(case.difference(vector), vector) < 0.02


def test_double_backward_works_through_checkpointing_that_is_not_reentrant() -> None:
    case = gpt(reentrant=False)
    vector = case.direction()
    assert case.error(case.exact(vector), vector) < 1e-4


def test_reentrant_checkpointing_has_no_second_derivative() -> None:
    case = gpt(reentrant=True)
    with case.sandbox() as sandbox, pytest.raises(NoSecondDerivativeError, match="use_reentrant=False"):
        ExactHessian(sandbox, case.closure, case.preconditioner)


def test_backward_leaves_no_gradient_anywhere() -> None:
    case = gpt(reentrant=True)
    own = [parameter.grad for parameter in case.parameters]
    scale = torch.ones((), requires_grad=True)
    scale.grad = torch.full((), 7.0)
    vector = torch.ones_like(case.preconditioner.diagonal)
    with case.sandbox() as sandbox:
        DifferenceHessian(sandbox, lambda: case.closure() * scale, case.preconditioner).product(vector)
    assert float(scale.grad) == 7.0
    assert all(parameter.grad is grad for parameter, grad in zip(case.parameters, own, strict=True))


def test_fused_attention_is_differenced_as_it_is_and_replaced_for_double_backward() -> None:
    case = gpt()
    vector = case.direction()
    plain = case.closure

    def fused() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return plain()

    case.closure = fused  # type: ignore[method-assign]
    assert case.error(case.difference(vector), vector) < 0.02
    with case.sandbox() as sandbox, pytest.raises(NoSecondDerivativeError, match="derivative"):
        ExactHessian(sandbox, case.closure, case.preconditioner).product(vector)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [tanh_net, gpt])
def test_curvature_under_autocast(make: Callable[[], Case], dtype: torch.dtype) -> None:
    case = make()
    vector = case.direction()
    expected = float(vector.double() @ case.expected(vector))
    plain = case.closure

    def coarse() -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return plain().float()

    case.closure = coarse  # type: ignore[method-assign]
    assert float(vector @ case.exact(vector)) == pytest.approx(expected, rel=0.1)
    assert float(vector @ case.difference(vector)) == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_differences_refuse_weights_of_16_bits(dtype: torch.dtype) -> None:
    case = tanh_net()
    case.model.to(dtype)
    with case.sandbox() as sandbox, pytest.raises(CoarseWeightsError, match="cannot resolve weights in"):
        DifferenceHessian(sandbox, case.closure, case.preconditioner)


def test_a_loss_with_gradients_of_its_inputs() -> None:
    case = tanh_net()
    x = torch.randn(16, 8)

    def loss_of(model: nn.Module) -> Tensor:
        points = like(x, model).clone().requires_grad_()
        output = model(points)
        (slope,) = torch.autograd.grad(output.sum(), points, create_graph=True)
        loss: Tensor = output.square().mean() + (slope.norm(dim=1) - 1).square().mean()
        return loss

    case.loss_of = loss_of
    vector = case.direction()
    assert case.error(case.exact(vector), vector) < 1e-4
    assert case.error(case.difference(vector), vector) < 0.02


def test_loss_and_gradient_at_the_point_are_one_evaluation() -> None:
    case = tanh_net(steps=100)
    calls = 0

    def counted() -> Tensor:
        nonlocal calls
        calls += 1
        return case.loss_of(case.model)

    vector = case.direction()
    with case.sandbox() as sandbox:
        hessian = DifferenceHessian(sandbox, counted, case.preconditioner)
        hessian.product(vector)
        assert calls == 2
        assert hessian.gradient.shape == vector.shape
        assert calls == 3, "loss and gradient at the point are one evaluation"
        assert float(hessian.loss) == pytest.approx(case.closure().item(), rel=1e-6)


@pytest.mark.parametrize("failing", [1, 2])
def test_weights_are_restored_when_the_closure_raises(failing: int) -> None:
    case = tanh_net()
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise KeyError("no batch left")
        return case.loss_of(case.model)

    with case.sandbox() as sandbox:
        hessian = DifferenceHessian(sandbox, closure, case.preconditioner)
        with pytest.raises(ClosureError, match="KeyError"):
            hessian.product(torch.ones_like(case.preconditioner.diagonal))


def test_a_zero_vector_has_a_zero_product() -> None:
    case = tanh_net()
    zero = torch.zeros_like(case.preconditioner.diagonal)
    assert not case.difference(zero).any()
    assert not case.exact(zero).any()
