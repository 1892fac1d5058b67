"""Losses that take gradients themselves have the right curvature, and its products leave no trace in a training."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client_sdk.curvature.hessian import DifferenceHessian, ExactHessian
from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.curvature.sandbox import Sandbox
from client_sdk.optimizers import kind_of
from tests.support.dense_hessian import dense_hessian

torch.set_num_threads(1)

Loss = Callable[[nn.Module], Tensor]


def penalised(model: nn.Module) -> Tensor:
    """Return a squared error with a penalty on the slope at the inputs, as critics of GANs have."""
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(12, 2).requires_grad_()
    value = model(x)
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    loss: Tensor = (value - 1).square().mean() + (slope.norm(dim=1) - 1).square().mean()
    return loss


def differential_equation(model: nn.Module) -> Tensor:
    """Return the residual of u'' = −u, as physics-informed networks have."""
    x = torch.linspace(0, 3, 12, dtype=torch.float64).reshape(12, 1).requires_grad_()
    u = model(torch.cat([x, torch.zeros_like(x)], dim=1))
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    loss: Tensor = (second + u).square().mean() + (u[0] - 1).square().sum()
    return loss


def one_step_ahead(model: nn.Module) -> Tensor:
    """Return the loss after a step of gradient descent inside the loss, as meta-learning has."""
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(12, 2)
    weights: dict[str, Tensor] = dict(model.named_parameters())
    inner = F.mse_loss(torch.func.functional_call(model, weights, (x[:6],)), x[:6, :1].sin())
    slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
    moved = {name: weight - 0.1 * slope for (name, weight), slope in zip(weights.items(), slopes, strict=True)}
    return F.mse_loss(torch.func.functional_call(model, moved, (x[6:],)), x[6:, :1].sin())


@pytest.mark.parametrize("loss_of", [penalised, differential_equation, one_step_ahead])
@pytest.mark.parametrize(("operator", "error"), [(ExactHessian, 1e-9), (DifferenceHessian, 1e-4)])
def test_a_loss_that_takes_gradients_itself(
    loss_of: Loss, operator: type[ExactHessian] | type[DifferenceHessian], error: float
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss_of(model).backward()
    optimizer.step()
    gradient, wanted = dense_hessian(model, loss_of)
    preconditioner = Preconditioner.read(optimizer, kind_of(optimizer))
    assert preconditioner is not None
    with Sandbox(model, preconditioner.parameters) as sandbox:
        hessian = operator(sandbox, lambda: loss_of(model), preconditioner)
        units = torch.eye(len(gradient), dtype=torch.float64)
        found = torch.stack([hessian.product(unit) for unit in units]).numpy()
    assert np.allclose(hessian.gradient.numpy(), gradient, rtol=1e-9, atol=1e-12)
    assert np.allclose(found, wanted, rtol=0.0, atol=error * np.abs(wanted).max())


class Noisy(nn.Module):
    """A network with what a second evaluation could disturb: dropout, batch norm and other random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        noise = random.random() + float(np.random.rand())
        result: Tensor = self.layers(x + 0.01 * noise) + 0.01 * torch.randn(len(x), 1)
        return result


@pytest.mark.parametrize("operator", [None, ExactHessian, DifferenceHessian])
def test_a_training_has_the_same_bits_with_products(
    operator: type[ExactHessian] | type[DifferenceHessian] | None,
) -> None:
    def train(measured: type[ExactHessian] | type[DifferenceHessian] | None) -> list[Tensor]:
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        model = Noisy()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)
        for _ in range(8):
            x = torch.randn(20, 4)
            y = x[:, :1].sin()
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
            preconditioner = Preconditioner.read(optimizer, kind_of(optimizer))
            if measured is not None and preconditioner is not None:
                with Sandbox(model, preconditioner.parameters) as sandbox:

                    def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                        return F.mse_loss(model(x), y)

                    hessian = measured(sandbox, closure, preconditioner)
                    hessian.product(hessian.product(hessian.gradient))
        kept = [tensor.detach().clone() for tensor in model.state_dict().values()]
        kept += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        kept += [value for state in optimizer.state.values() for value in state.values()]
        return [*kept, torch.rand(3), torch.tensor([random.random(), np.random.rand()])]

    bare, measured = train(None), train(operator)
    assert len(bare) == len(measured) > 20
    assert all(torch.equal(a, b) for a, b in zip(bare, measured, strict=True))
