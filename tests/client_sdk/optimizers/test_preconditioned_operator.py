"""D^½·(H + γ)·D^½ of a trained network equals the dense float64 matrix, for every optimizer whose limit is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from scipy.linalg import eigh
from torch import Tensor, nn

from client_sdk.curvature.hessian import ExactHessian
from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.curvature.sandbox import Sandbox
from client_sdk.optimizers import kind_of
from tests.support.dense_hessian import dense_hessian
from tests.support.dense_update import dense_diagonal

torch.set_num_threads(1)

Make = Callable[[Any], torch.optim.Optimizer]
Torch = torch.optim
OPTIMIZERS: Mapping[str, Make] = {
    "sgd": lambda p: Torch.SGD(p, lr=0.1),
    "heavy-ball": lambda p: Torch.SGD(p, lr=0.1, momentum=0.9),
    "average": lambda p: Torch.SGD(p, lr=0.1, momentum=0.9, dampening=0.9),
    "nesterov": lambda p: Torch.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: Torch.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: Torch.AdamW(p, lr=0.01, betas=(0.8, 0.95), eps=1e-3),
    "amsgrad": lambda p: Torch.AdamW(p, lr=0.01, amsgrad=True),
    "nadam": lambda p: Torch.NAdam(p, lr=0.01),
    "radam": lambda p: Torch.RAdam(p, lr=0.01),
    "adamax": lambda p: Torch.Adamax(p, lr=0.01),
    "rmsprop": lambda p: Torch.RMSprop(p, lr=0.01),
    "rmsprop-centred": lambda p: Torch.RMSprop(p, lr=0.01, centered=True, momentum=0.5, eps=1e-3),
    "adagrad": lambda p: Torch.Adagrad(p, lr=0.05, lr_decay=0.01),
    "adadelta": lambda p: Torch.Adadelta(p, lr=1.0),
    "adafactor": lambda p: Torch.Adafactor(p, lr=0.05),
    "adafactor-slowing": lambda p: Torch.Adafactor(p, lr=2.0),
    "transformers-adafactor": lambda p: transformers.Adafactor(p, lr=0.01, relative_step=False, beta1=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_operator_equals_the_dense_matrix(name: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(30, 4, dtype=torch.float64)
    y = torch.sin(2 * x[:, :3])

    def loss_of(module: nn.Module) -> Tensor:
        return F.mse_loss(module(x), y)

    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(12):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    preconditioner = Preconditioner.read(optimizer, kind_of(optimizer))
    assert preconditioner is not None
    with Sandbox(model, preconditioner.parameters) as sandbox:
        hessian = ExactHessian(sandbox, lambda: loss_of(model), preconditioner)
        columns = torch.stack([hessian.product(unit) for unit in torch.eye(len(preconditioner.diagonal)).double()])
    root = preconditioner.diagonal.sqrt()
    if preconditioner.penalty is not None:
        columns = columns + torch.diag(preconditioner.penalty)
    ours = (root.unsqueeze(1) * columns * root).numpy()

    decay = optimizer.param_groups[0].get("weight_decay", 0.0)
    coupled = 0.0 if name in ("adamw", "amsgrad") else decay
    _, dense = dense_hessian(model, loss_of)
    scale = np.sqrt(dense_diagonal(model, optimizer))
    wanted = scale[:, None] * (dense + coupled * np.eye(len(dense))) * scale
    assert np.allclose(ours, wanted, rtol=1e-6, atol=1e-9 * np.abs(wanted).max())
    largest = eigh(wanted, eigvals_only=True)[-1]
    assert eigh(ours, eigvals_only=True)[-1] == pytest.approx(largest, rel=1e-7)
    assert largest > 0
