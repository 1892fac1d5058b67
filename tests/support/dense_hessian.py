"""Oracle of the curvature tests: dense float64 Hessians and preconditioners in the simplest possible code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from torch import Tensor, nn

Matrix = NDArray[np.float64]
"""Vector [N] or matrix [N, N] over all parameters."""


ROWS = 128  # of a Hessian, which are computed together


def dense_hessian(model: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> tuple[Matrix, Matrix]:
    """Return the gradient [N] and the Hessian [N, N] over all parameters, computed `ROWS` rows at a time."""
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss_of(model), parameters, create_graph=True)
    gradient = torch.cat([grad.reshape(-1) for grad in grads])
    blocks = []
    for rows in torch.eye(len(gradient), dtype=gradient.dtype).split(ROWS):
        block = torch.autograd.grad(
            gradient, parameters, rows, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )
        blocks.append(torch.cat([part.detach().double().flatten(1) for part in block], 1))
    return gradient.detach().double().numpy(), torch.cat(blocks).numpy()


def dense_preconditioner(model: nn.Module, optimizer: torch.optim.Optimizer) -> Matrix:
    """Return the diagonal [N] of D·η/η_max with the momentum factor, for Adam, AdamW, RMSprop and SGD.

    The formulas are those of docs/explanation/science.md, "The limit: 2/η".
    """
    group_of: dict[Tensor, dict[str, Any]] = {p: g for g in optimizer.param_groups for p in g["params"]}
    largest = max(group["lr"] for group in optimizer.param_groups)
    pieces = []
    for parameter in model.parameters():
        group, state = group_of[parameter], optimizer.state.get(parameter, {})
        if "exp_avg_sq" in state:
            beta1, beta2 = group["betas"]
            t = float(state["step"])
            v_hat = state.get("max_exp_avg_sq", state["exp_avg_sq"]).double() / (1 - beta2**t)
            diagonal = (1 / (1 - beta1**t)) * ((1 - beta1) / (1 + beta1)) / (v_hat.sqrt() + group["eps"])
        elif "square_avg" in state:
            diagonal = 1 / (state["square_avg"].double().sqrt() + group["eps"]) / (1 + group["momentum"])
        else:
            mu, dampening = group["momentum"], group["dampening"]
            factor = 1 + mu * (1 - dampening) / (1 + mu) if group["nesterov"] else (1 - dampening * (mu > 0)) / (1 + mu)
            diagonal = torch.full(parameter.shape, factor, dtype=torch.float64)
        pieces.append((diagonal * group["lr"] / largest).reshape(-1))
    return torch.cat(pieces).numpy()


def largest_eigenvalue(diagonal: Matrix, hessian: Matrix) -> float:
    """Return the largest eigenvalue of D·H, computed by SciPy from the symmetric form D^½·H·D^½."""
    root = np.sqrt(diagonal)
    values: Matrix = eigh(root[:, None] * hessian * root[None, :], eigvals_only=True)
    return float(values[-1])
