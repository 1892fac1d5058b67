"""Disturbances of a distributed training, and trainings of an unusual form."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor

from client_sdk.stats import Meter
from client_sdk.watch import watch
from tests.client_sdk.distributed.trainings import Net, Outcome, adamw, batch, part_of, recorded, train


def flip_a_bit(rank: int, step: int, model: nn.Module) -> None:
    """Change one weight of rank 1 in its last place, as a fault of its memory would."""
    if rank == 1 and step == 1:
        with torch.no_grad():
            weight = model.get_parameter("module.thin.weight").view(-1)
            weight[7] = torch.nextafter(weight[7], torch.tensor(2.0, dtype=weight.dtype))


def forget_to_reduce(rank: int, step: int, model: nn.Module) -> None:
    """Change the gradients of rank 1, as a backward pass under `no_sync` would."""
    if rank == 1 and step >= 2:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= 1.5


def die(rank: int, size: int) -> Outcome:
    """Train without reductions of its own, so that rank 1 can die and the others go on."""

    def disturb(rank: int, step: int, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        if rank == 1 and step == 2:
            os._exit(1)

    return train(rank, size, "plain", steps=6, disturb=disturb)


def break_measuring(rank: int, size: int) -> Outcome:
    """Train while the meter of rank 1 fails at the second step."""
    measure = Meter.measure
    calls = []

    def broken(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if rank == 1 and len(calls) == 2:
            raise RuntimeError("no meter")
        return measure(*arguments, **options)

    with patch.object(Meter, "measure", broken):
        return train(rank, size, "ddp")


def cannot_connect(rank: int, size: int) -> Outcome:
    """Train shards while the ranks cannot connect to each other for the sums."""

    def refused(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no route to host")

    with patch("client_sdk.distributed.participation.Reduction", refused):
        return train(rank, size, "fsdp2")


def accumulate(rank: int, size: int) -> Outcome:
    """Train with two backward passes for each step, the first of which is not reduced."""
    outcome = Outcome()
    with recorded(rank, outcome) as run:
        model = nn.parallel.DistributedDataParallel(Net())
        optimizer = adamw(model.parameters())
        handle = watch(run, model, optimizer, every=1, precision="exact")
        for step in range(3):
            x, y = (part_of(each, rank, size).chunk(2) for each in batch(step))
            optimizer.zero_grad()
            with model.no_sync():
                (nn.functional.mse_loss(model(x[0]), y[0]) / 2).backward()
            (nn.functional.mse_loss(model(x[1]), y[1]) / 2).backward()
            optimizer.step()
            if rank == 0:
                run.log({}, step=step)
        handle.remove()
    return outcome


def pipeline(rank: int, size: int, share_names: bool = False) -> Outcome:
    """Train one stage of a pipeline on each rank; the last one logs."""
    outcome = Outcome()
    with recorded(rank, outcome) as run:
        torch.manual_seed(rank)
        stage = nn.ModuleDict({"same" if share_names else f"stage{rank}": nn.Linear(3 + rank, 2).double()})
        optimizer = adamw(stage.parameters())
        handle = watch(run, stage, optimizer, every=1, precision="exact")
        dist.barrier()
        for step in range(3):
            for parameter in stage.parameters():
                parameter.grad = torch.full_like(parameter, rank + 1.0)
            optimizer.step()
            dist.barrier()
            if rank == size - 1:
                run.log({"loss": 1.0}, step=step)
        handle.remove()
    return outcome


def unused_parameters(rank: int, size: int) -> Outcome:
    """Train a model of which some parameters get no gradient at some steps, on all ranks."""
    outcome = Outcome()
    with recorded(rank, outcome) as run:
        model = Net()
        model_parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        optimizer = adamw(model.parameters())
        handle = watch(run, model_parallel, optimizer, every=1, precision="exact")
        for step in range(3):
            model.out.requires_grad_(step != 1)
            x, y = (part_of(each, rank, size) for each in batch(step))
            optimizer.zero_grad()
            nn.functional.mse_loss(model_parallel(x), y).backward()
            if step == 1:
                model.norm.weight.grad = None
            optimizer.step()
            if rank == 0:
                run.log({}, step=step)
        handle.remove()
    return outcome


def partial_gradients(rank: int, size: int) -> Outcome:
    """Give the optimizer a gradient that is still a partial sum over the ranks, and one that is not."""
    mesh = init_device_mesh("cpu", (size,))
    outcome = Outcome()
    with recorded(rank, outcome) as run:
        torch.manual_seed(0)
        model = nn.ParameterDict(
            {name: nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Replicate()])) for name in ("partial", "whole")}
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = watch(run, model, optimizer, every=1, precision="exact")
        for step in range(2):
            for name, placement in (("partial", Partial()), ("whole", Replicate())):
                model[name].grad = DTensor.from_local(torch.full((4,), 0.5), mesh, [placement])
            optimizer.step()
            if rank == 0:
                run.log({}, step=step)
        handle.remove()
    return outcome


def watch_twice(rank: int, size: int) -> tuple[Outcome, Outcome]:
    """Train, stop watching, and train again, as a resumed training does."""
    return train(rank, size, "fsdp2", steps=3), train(rank, size, "fsdp2", steps=3)


def partly_sharded(rank: int, size: int) -> Outcome:
    """Train a model of which one layer is sharded and the others are plain copies."""
    outcome = Outcome()
    with recorded(rank, outcome) as run:
        model = Net()
        fully_shard(model.wide, mesh=init_device_mesh("cpu", (size,)))
        optimizer = adamw(model.parameters())
        handle = watch(run, model, optimizer, every=1, precision="exact")
        for step in range(4):
            x, y = (part_of(each, rank, size) for each in batch(step))
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            for module in (model.thin, model.norm, model.out):
                for parameter in module.parameters():
                    assert parameter.grad is not None
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= size
            optimizer.step()
            if rank == 0:
                run.log({"loss": 1.0}, step=step)
        handle.remove()
    return outcome
