"""Products with the Hessian through custom functions are exact, or the function that cuts them is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client_sdk.curvature.hessian import ExactHessian, NoSecondDerivativeError
from tests.support.hessian_cases import Case, like

torch.set_num_threads(1)


class Tanh(torch.autograd.Function):
    """Tanh whose derivative is computed in a way that has no derivative itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            slope: Tensor = grad * (1 - x.tanh() ** 2)
        return slope


class SmoothTanh(torch.autograd.Function):
    """Tanh whose derivative can be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = grad * (1 - x.tanh() ** 2)
        return slope


class FusedMeanSquare(torch.autograd.Function):
    """A loss that computes its gradient in the forward pass, as fused cross-entropies do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(2 * x / x.numel())
        return x.square().mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (kept,) = ctx.saved_tensors
        slope: Tensor = grad * kept
        return slope


class Double(torch.autograd.Function):
    """A linear function, whose gradient is constant by right."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


def custom_net(activation: type[torch.autograd.Function], end: Callable[[Tensor], Tensor]) -> Case:
    torch.manual_seed(0)
    x = torch.randn(30, 4)

    def loss_of(model: nn.Module) -> Tensor:
        assert isinstance(model, nn.Sequential)
        hidden: Tensor = activation.apply(model[0](like(x, model)))
        return end(model[1](hidden) - like(x[:, :1], model))

    return Case(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)), loss_of)


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean()


def _fused_mean_square(x: Tensor) -> Tensor:
    loss: Tensor = FusedMeanSquare.apply(x)  # type: ignore[no-untyped-call]
    return loss


def _doubled(x: Tensor) -> Tensor:
    loss: Tensor = Double.apply(x.square().mean())  # type: ignore[no-untyped-call]
    return loss


@pytest.mark.parametrize("end", [_mean_square, _doubled])
def test_custom_functions_that_can_be_differentiated_are_exact(end: Callable[[Tensor], Tensor]) -> None:
    case = custom_net(SmoothTanh, end)
    vector = case.direction()
    assert case.error(case.exact(vector), vector) < 1e-4


@pytest.mark.parametrize(
    ("activation", "end", "name"),
    [(Tanh, _mean_square, "Tanh"), (SmoothTanh, _fused_mean_square, "FusedMeanSquare")],
)
def test_custom_functions_that_cut_the_second_derivative_are_named(
    activation: type[torch.autograd.Function], end: Callable[[Tensor], Tensor], name: str
) -> None:
    case = custom_net(activation, end)
    with case.sandbox() as sandbox, pytest.raises(NoSecondDerivativeError, match=name):
        ExactHessian(sandbox, case.closure, case.preconditioner)
    reference = custom_net(SmoothTanh, _mean_square)
    vector = reference.direction()
    assert reference.error(case.difference(vector), vector) < 0.02
