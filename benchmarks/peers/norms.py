"""The quantities that other tools compute of every tensor at a step, in a few lines of our own that do the same.

Their libraries are built around their own trainers, so the arithmetic is repeated here: `wandb.watch` (histograms of
gradients), Levanter's `WatchConfig` (norms of gradients and weights) and Composer's `OptimizerMonitor` (norms of
gradient, weights, moment and update). Every function ends with its values on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

BINS: Final = 64
Peer = Callable[[Sequence[Tensor], torch.optim.Optimizer], int]
"""Function that reads all parameters after a step, and returns how many values it has brought to the host."""


@torch.no_grad()
def foreach_norms(parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Compute the norms of all gradients and weights with two foreach operations."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = [*torch._foreach_norm(grads), *torch._foreach_norm(list(parameters))]
    return len(torch.stack(norms).tolist())


@torch.no_grad()
def levanter_norms(parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Compute the norm of each gradient and weight, and those of all together, as `WatchConfig` does by default."""
    norms: list[Tensor] = []
    for tensors in ([parameter.grad for parameter in parameters], parameters):
        squares = [tensor.square().sum() for tensor in tensors if tensor is not None]
        norms += [square.sqrt() for square in squares]
        norms.append(torch.stack(squares).sum().sqrt())
    return len(torch.stack(norms).tolist())


@torch.no_grad()
def composer_norms(parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Compute the norms of gradient, weights, moment and update of each tensor, as `OptimizerMonitor` does for Adam."""
    (group,) = optimizer.param_groups
    (beta1, beta2), eps = group["betas"], group["eps"]
    norms: list[Tensor] = []
    for parameter in parameters:
        state = optimizer.state[parameter]
        step = float(state["step"])
        root = (state["exp_avg_sq"].sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
        update = (state["exp_avg"] / root).mul_(group["lr"] / (1 - beta1**step))
        assert parameter.grad is not None
        norms += [torch.linalg.vector_norm(x) for x in (parameter.grad, parameter, state["exp_avg"], update)]
    return len(torch.stack(norms).tolist())


@torch.no_grad()
def wandb_histograms(parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Compute a histogram of each gradient between its extremes, as the hooks of `wandb.watch` do."""
    counts = []
    for parameter in parameters:
        assert parameter.grad is not None
        flat = parameter.grad.reshape(-1)
        if not torch.isfinite(flat).all():
            flat = flat[torch.isfinite(flat)]
        low, high = flat.min().item(), flat.max().item()
        counts.append(flat.float().histc(BINS, min=low, max=high).cpu().tolist())
    return len(counts)


PEERS: Final[dict[str, Peer]] = {
    "foreach norms of g and w": foreach_norms,
    "Levanter-style norms": levanter_norms,
    "Composer-style norms": composer_norms,
    "wandb.watch-style histograms": wandb_histograms,
}
"""The peers by name."""
