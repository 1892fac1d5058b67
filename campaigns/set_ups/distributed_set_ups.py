"""Trainings of two or four processes over gloo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn, optim
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from campaigns.set_ups.set_up import Catalogue
from campaigns.set_ups.trial import Trial, loss_of, network

Wrap = Callable[[nn.Module], nn.Module]


def add(catalogue: Catalogue) -> None:
    """Add the set-ups of this section."""
    for name, wrap, processes in (
        ("DDP", DistributedDataParallel, 2),
        ("FSDP2", _fsdp, 2),
        ("FSDP2, 4 processes", _fsdp, 4),
        ("HSDP", _hsdp, 4),
        ("tensor parallel", _tensor_parallel, 2),
        ("FSDP2 over tensor parallel", _both, 4),
    ):
        catalogue.add(name, "Several processes", _training(wrap, _adamw), processes=processes)
    catalogue.add(
        "ZeRO-1 of torch, over DDP", "Several processes", _training(DistributedDataParallel, _zero), processes=2
    )


def _adamw(model: nn.Module) -> optim.Optimizer:
    return optim.AdamW(model.parameters(), 0.01)


def _zero(model: nn.Module) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # its module warns that it uses torch.jit

    return ZeroRedundancyOptimizer(model.parameters(), optim.AdamW, lr=0.01)


def _layers(model: nn.Module) -> list[Any]:
    return [model[0], model[2]]  # type: ignore[index]


def _fsdp(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _hsdp(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    fully_shard(model, mesh=mesh)
    return model


def _tensor_parallel(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def _both(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])
    return model


def _training(wrap: Wrap, optimizer_of: Callable[[nn.Module], Any]) -> Callable[[Trial], None]:
    def train(trial: Trial) -> None:
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        is_split = wrap in {DistributedDataParallel, _fsdp, _hsdp}
        model = wrap(network())
        optimizer = optimizer_of(model)
        trial.begin(model, optimizer)
        for inputs, targets in trial.batches():
            part = slice(rank * len(inputs) // ranks, (rank + 1) * len(inputs) // ranks) if is_split else slice(None)
            optimizer.zero_grad()
            loss = loss_of(model, (inputs[part], targets[part]))
            loss.backward()
            trial.step(optimizer)
            trial.log_from_first(loss, rank)

    return train
