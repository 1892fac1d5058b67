"""Preconditioners of optimizers from their published formulas, in float64 and one coordinate after another.

Written out from the update rule of each optimizer, without the shared form of `client_sdk.optimizers`, as the oracle of
its tests. Each is the answer of the update to a gradient that changes its sign at every step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def dense_diagonal(model: nn.Module, optimizer: torch.optim.Optimizer) -> NDArray[np.float64]:
    """Return the diagonal [N] of the preconditioner of the parameters, whose group is the only one."""
    (group,) = optimizer.param_groups
    name = type(optimizer).__name__
    package = type(optimizer).__module__.partition(".")[0]
    pieces = []
    for parameter in model.parameters():
        state = optimizer.state.get(parameter, {})
        diagonal = _of(f"{package}.{name}", group, state, parameter.detach().double())
        pieces.append(diagonal.double().expand(parameter.shape).reshape(-1))
    return torch.cat(pieces).numpy()


def _of(name: str, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor) -> Any:
    t = float(state.get("step", 0))
    if name == "torch.SGD":
        mu, taken = group["momentum"], 1 - group["dampening"]
        if mu == 0:
            return torch.ones(())
        momentum = taken / (1 + mu)  # m = μ·m + taken·g alternates with this amplitude
        return torch.tensor(1 + mu * momentum if group["nesterov"] else momentum)
    if name == "torch.RMSprop":
        v = state["square_avg"] - (state["grad_avg"] ** 2 if group["centered"] else 0.0)
        return 1 / (v.sqrt() + group["eps"]) / (1 + group["momentum"])
    if name == "torch.Adagrad":
        return 1 / (1 + (t - 1) * group["lr_decay"]) / (state["sum"].sqrt() + group["eps"])
    if name == "torch.Adadelta":
        return (state["acc_delta"] + group["eps"]).sqrt() / (state["square_avg"] + group["eps"]).sqrt()
    if name == "torch.Adafactor":
        if "row_var" in state and state["row_var"] is not None:
            v = state["row_var"] @ state["col_var"] / state["row_var"].mean()
        else:
            v = state["variance"]
        alpha = max(group["eps"][1], float(weight.square().mean()) ** 0.5) * min(group["lr"], t**-0.5)
        return alpha / v.sqrt() / group["lr"]
    if name == "transformers.Adafactor":
        if "exp_avg_sq_row" in state:
            row, column = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            v = torch.outer(row, column) / row.mean()
        else:
            v = state["exp_avg_sq"]
        beta1 = group["beta1"]
        return (1 - beta1) / (1 + beta1) * max(group["eps"][1], float(weight.square().mean()) ** 0.5) / v.sqrt()
    return _adam(name, group, state, t)


def _adam(name: str, group: Mapping[str, Any], state: Mapping[str, Any], t: float) -> Any:
    beta1, beta2 = group["betas"]
    momentum = (1 - beta1) / (1 + beta1)
    warm, correction = 1 - beta1**t, 1 - beta2**t
    if name == "torch.Adamax":
        return momentum / warm / state["exp_inf"]
    v_hat = state.get("max_exp_avg_sq", state["exp_avg_sq"]) / correction
    if name == "torch.NAdam":
        decay = group["momentum_decay"]
        mus = [beta1 * (1 - 0.5 * 0.96 ** (at * decay)) for at in range(1, int(t) + 2)]
        product = math.prod(mus[:-1])
        direct = (1 - mus[-2]) / (1 - product)
        return (direct + mus[-1] / (1 - product * mus[-1]) * momentum) / (v_hat.sqrt() + group["eps"])
    if name == "torch.RAdam":
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * t * beta2**t / correction
        if length <= 5:
            return torch.tensor(momentum / warm)
        square = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return square**0.5 * momentum / warm / ((state["exp_avg_sq"].sqrt() + group["eps"]) / correction**0.5)
    return momentum / warm / (v_hat.sqrt() + group["eps"])
