"""The networks of the reproductions, and a training loop that reads their curvature with the SDK's own operators."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.datasets import load_digits
from torch import Tensor, nn

from client_sdk.curvature.hessian import ExactHessian
from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.curvature.sandbox import Sandbox
from client_sdk.optimizers import kind_of

Array = NDArray[np.float64]
TOLERANCE = 1e-3
"""Relative tolerance of the iteration for λ_max."""


@dataclass(kw_only=True)
class Training:
    """A full-batch training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_of: Callable[[nn.Module], Tensor]
    """Function from the model, in any precision, to its loss on the whole data."""

    def step(self) -> float:
        """Make one step and return the loss before it."""
        self.optimizer.zero_grad()
        loss = self.loss_of(self.model)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


@dataclass(kw_only=True)
class CurvatureReader:
    """Reads λ_max and λ_grad of Ĥ with the products of the SDK and SciPy's Lanczos iteration."""

    training: Training
    _start: Array | None = field(default=None, init=False)

    def read(self) -> tuple[float, float]:
        """Return λ_max(Ĥ) and λ_grad = gᵀĤg/‖g‖² at the current weights."""
        training = self.training
        preconditioner = _preconditioner(training.optimizer)
        root = preconditioner.diagonal.sqrt()
        with Sandbox(training.model, preconditioner.parameters) as sandbox:
            hessian = ExactHessian(sandbox, lambda: training.loss_of(training.model), preconditioner, verify=False)

            def product(vector: Array) -> Array:
                x = torch.as_tensor(vector.reshape(-1)).to(root.dtype)
                return (root * hessian.product(root * x)).double().numpy()

            size = len(root)
            operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
            values, vectors = eigsh(operator, k=1, which="LA", v0=self._start, ncv=12, tol=TOLERANCE)
            self._start = vectors[:, 0]
            gradient = hessian.gradient
            image = preconditioner.diagonal * hessian.product(gradient)
        return float(values[0]), float(torch.dot(gradient, image) / torch.dot(gradient, gradient))


def dense_lambda_max(training: Training) -> float:
    """Return λ_max(Ĥ) of a full float64 Hessian, with Adam's D written out, without any operator of the SDK."""
    parameters, grads = _double_gradient(training)
    units = torch.eye(sum(p.numel() for p in parameters), dtype=torch.float64)
    columns = []
    for rows in units.split(128):
        pieces = [rows[:, at] for at in torch.arange(rows.shape[1]).split([p.numel() for p in parameters])]
        shaped = [piece.reshape(len(rows), *p.shape) for piece, p in zip(pieces, parameters, strict=True)]
        products = torch.autograd.grad(grads, parameters, shaped, retain_graph=True, is_grads_batched=True)
        columns.append(torch.cat([product.reshape(len(rows), -1) for product in products], dim=1))
    root = _adam_diagonal(training).sqrt().numpy()
    hessian = torch.cat(columns).numpy()
    last = len(root) - 1
    value = eigh(root[:, None] * hessian * root, eigvals_only=True, subset_by_index=(last, last), overwrite_a=True)
    return float(value[0])


def double_lambda_max(training: Training) -> float:
    """Return λ_max(Ĥ) by SciPy's iteration on float64 products, without any operator of the SDK."""
    parameters, grads = _double_gradient(training)
    root = _adam_diagonal(training).sqrt()

    def product(vector: Array) -> Array:
        pieces = (root * torch.as_tensor(vector.reshape(-1))).split([p.numel() for p in parameters])
        shaped = [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]
        products = torch.autograd.grad(grads, parameters, shaped, retain_graph=True)
        return (root * torch.cat([one.reshape(-1) for one in products])).numpy()

    operator = LinearOperator((len(root), len(root)), matvec=product, dtype=np.float64)
    return float(eigsh(operator, k=1, which="LA", tol=1e-8, return_eigenvectors=False)[0])


def _double_gradient(training: Training) -> tuple[list[nn.Parameter], list[Tensor]]:
    """Return float64 copies of the parameters and the gradient there, with its graph."""
    model = copy.deepcopy(training.model).double()
    parameters = list(model.parameters())
    return parameters, list(torch.autograd.grad(training.loss_of(model), parameters, create_graph=True))


def _adam_diagonal(training: Training) -> Tensor:
    """Return the diagonal of D with the momentum factor, [N], from the formula of Bai et al."""
    (group,) = training.optimizer.param_groups
    beta1, beta2 = group["betas"]
    pieces = []
    for parameter in training.model.parameters():
        state = training.optimizer.state[parameter]
        t = float(state["step"])
        v_hat = state["exp_avg_sq"].double() / (1 - beta2**t)
        pieces.append(((1 - beta1) / (1 + beta1) / (1 - beta1**t) / (v_hat.sqrt() + group["eps"])).reshape(-1))
    return torch.cat(pieces)


def adam(
    model: nn.Module, lr: float, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> torch.optim.Adam:
    """Return Adam for all parameters of ``model``."""
    return torch.optim.Adam(model.parameters(), lr=lr, betas=(beta1, beta2), eps=eps)


def tanh_net(seed: int, *, points: int = 200, width: int = 64, beta2: float = 0.999, eps: float = 1e-8) -> Training:
    """Return a regression net 50-width-width-1 with tanh and all ``points`` in one batch, Adam at η = 0.01."""
    torch.manual_seed(seed)
    inputs = torch.randn(points, 50)
    direction = torch.randn(50, 1) / 50**0.5
    targets = torch.sin(3 * inputs @ direction) + inputs @ direction
    model = nn.Sequential(nn.Linear(50, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    return Training(
        model=model,
        optimizer=adam(model, 0.01, beta2=beta2, eps=eps),
        loss_of=lambda net: F.mse_loss(net(_like(inputs, net)), _like(targets, net)),
    )


def digits_net(seed: int, *, lr: float, beta1: float = 0.9, beta2: float = 0.999, images: int = 500) -> Training:
    """Return a tanh net 64-24-24-10 with a squared error on ``images`` digits in one batch."""
    torch.manual_seed(seed)
    pixels, numbers = load_digits(return_X_y=True)
    inputs = torch.tensor(pixels[:images] / 16 - 0.3, dtype=torch.float32)
    targets = F.one_hot(torch.tensor(numbers[:images]), 10).float()
    model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 10))
    return Training(
        model=model,
        optimizer=adam(model, lr, beta1=beta1, beta2=beta2),
        loss_of=lambda net: (net(_like(inputs, net)) - _like(targets, net)).square().sum(1).mean(),
    )


def _like(tensor: Tensor, model: nn.Module) -> Tensor:
    return tensor.to(next(model.parameters()).dtype)


def _preconditioner(optimizer: torch.optim.Optimizer) -> Preconditioner:
    found = Preconditioner.read(optimizer, kind_of(optimizer))
    assert found is not None, "the optimizer has made no step yet"
    return found
