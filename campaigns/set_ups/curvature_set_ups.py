"""Trainings whose curvature is measured with a closure on every process, held against dense float64 Hessians."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn, optim
from torch.nn.parallel import DistributedDataParallel

from campaigns.set_ups.distributed_set_ups import fully_sharded, part_of
from campaigns.set_ups.loops import Batch
from campaigns.set_ups.set_up import Catalogue
from campaigns.set_ups.trial import Trial, loss_of, network, whole

GROUP: Final = "Curvature"
STEPS: Final = 32


def add(catalogue: Catalogue) -> None:
    """Add the set-ups of this section."""
    for name, wrap, processes in (
        ("λ_max, one process", nn.Sequential, 1),
        ("λ_max, DDP", DistributedDataParallel, 2),
        ("λ_max, FSDP2", fully_sharded, 2),
    ):
        catalogue.add(name, GROUP, _training(wrap), processes=processes)


def _training(wrap: Callable[[Any], nn.Module]) -> Callable[[Trial], None]:
    def train(trial: Trial) -> None:
        several = torch.distributed.is_initialized()
        rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if several else (0, 1)
        trial.steps = STEPS
        model = wrap(network())
        optimizer = optim.Adam(model.parameters(), 0.003)
        trial.begin(model, optimizer, curvature_every=2, budget=math.inf)
        batch = trial.batches()[0]  # the same at every step, so that λ_max has time to be found
        own = part_of(batch, rank, ranks)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(model, own)
            loss.backward()
            trial.step(optimizer)
            trial.log_with_closure(
                loss, lambda: loss_of(model, own), lambda: lambda_max_of(model, optimizer, batch), rank
            )

    return train


def lambda_max_of(model: nn.Module, optimizer: optim.Adam, batch: Batch) -> float:
    """Return λ_max of the present point from the dense Hessian of the whole batch; every process must call it.

    The formula is that of docs/explanation/science.md, "The limit: 2/η".
    """
    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    twin = network().double()
    diagonals = []
    with torch.no_grad():
        for own, parameter in zip(twin.parameters(), model.parameters(), strict=True):
            own.copy_(whole(parameter))
            state = optimizer.state[parameter]
            t = float(state["step"])
            root = (whole(state["exp_avg_sq"]).double() / (1 - beta2**t)).sqrt()
            diagonals.append((1 - beta1) / (1 + beta1) / (1 - beta1**t) / (root + group["eps"]))
    root = torch.cat([diagonal.reshape(-1) for diagonal in diagonals]).sqrt()
    parameters = list(twin.parameters())
    grads = torch.autograd.grad(loss_of(twin, (batch[0].double(), batch[1].double())), parameters, create_graph=True)
    rows = [
        torch.cat([part.reshape(-1) for part in torch.autograd.grad(each, parameters, retain_graph=True)])
        for each in torch.cat([grad.reshape(-1) for grad in grads])
    ]
    hessian: Tensor = root[:, None] * torch.stack(rows) * root
    return float(torch.linalg.eigvalsh(hessian)[-1])
