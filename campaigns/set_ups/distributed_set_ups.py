"""Trainings of two or four processes over gloo."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from campaigns.set_ups.loops import Batch, steps
from campaigns.set_ups.set_up import Catalogue
from campaigns.set_ups.trial import Trial, loss_of, network

Wrap = Callable[[nn.Module], nn.Module]
GROUP = "Several processes"


def add(catalogue: Catalogue) -> None:
    """Add the set-ups of this section."""
    for name, wrap, processes, is_split in (
        ("DDP", DistributedDataParallel, 2, True),
        ("FSDP2", fully_sharded, 2, True),
        ("FSDP2, 4 processes", fully_sharded, 4, True),
        ("HSDP", _hsdp, 4, True),
        ("tensor parallel", _tensor_parallel, 2, False),
        ("FSDP2 over tensor parallel", _both, 4, False),
    ):
        catalogue.add(name, GROUP, _training(wrap, _adamw, is_split=is_split), processes=processes)
    catalogue.add("FSDP1", GROUP, _fsdp1_training(ShardingStrategy.FULL_SHARD), processes=2)
    catalogue.add(
        "FSDP1, gradients and state divided", GROUP, _fsdp1_training(ShardingStrategy.SHARD_GRAD_OP), processes=2
    )
    catalogue.add(
        "ZeRO-1 of torch, over DDP", GROUP, _training(DistributedDataParallel, _zero, is_split=True), processes=2
    )
    for stage in (1, 2, 3):
        catalogue.add(f"DeepSpeed ZeRO-{stage}", GROUP, _zero_training(stage, torch.float32), processes=2)
        catalogue.add(f"DeepSpeed ZeRO-{stage}, bfloat16", GROUP, _zero_training(stage, torch.bfloat16), processes=2)


def _adamw(model: nn.Module) -> optim.Optimizer:
    return optim.AdamW(model.parameters(), 0.01)


def _zero(model: nn.Module) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # its module warns that it uses torch.jit

    return ZeroRedundancyOptimizer(model.parameters(), optim.AdamW, lr=0.01)


def _layers(model: nn.Module) -> list[Any]:
    return [model[0], model[2]]  # type: ignore[index]


def fully_sharded(model: nn.Module) -> nn.Module:
    """Return the network with its layers divided among all processes by FSDP2."""
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


def _training(wrap: Wrap, optimizer_of: Callable[[nn.Module], Any], *, is_split: bool) -> Callable[[Trial], None]:
    def train(trial: Trial) -> None:
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        model = wrap(network())
        optimizer = optimizer_of(model)
        trial.begin(model, optimizer)

        def objective(model: nn.Module, batch: Batch) -> Tensor:
            return loss_of(model, part_of(batch, rank, ranks) if is_split else batch)

        steps(trial, model, optimizer, objective=objective, log=lambda loss: trial.log_from_first(loss, rank))

    return train


def _fsdp1_training(strategy: ShardingStrategy) -> Callable[[Trial], None]:
    def wrap(model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            model, use_orig_params=True, sharding_strategy=strategy, device_id=torch.device("cpu")
        )

    train = _training(wrap, _adamw, is_split=True)

    def train_divided(trial: Trial) -> None:
        trial.weights_of, trial.gradient_of = _joined, _joined_gradient
        train(trial)

    return train_divided


def _joined(part: Tensor) -> Tensor:
    """Return the parts that all processes have of a parameter or gradient, one after the other."""
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part.detach().reshape(-1))
    return torch.cat(parts)


def _joined_gradient(parameter: Tensor) -> Tensor:
    """Return the whole gradient; a process that has no part of the parameter has no gradient either."""
    return _joined(parameter.new_zeros(0) if parameter.grad is None else parameter.grad)


def part_of(batch: Batch, rank: int, ranks: int) -> Batch:
    """Return the rows of a batch that belong to one of several processes."""
    return batch[0].chunk(ranks)[rank], batch[1].chunk(ranks)[rank]


def _zero_training(stage: int, dtype: torch.dtype) -> Callable[[Trial], None]:
    """Return a training with DeepSpeed, whose truth is what its own functions gather around each step."""

    def train(trial: Trial) -> None:
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # which would be compiled
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        model = network().to(dtype)
        configuration = {
            "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True, "bf16": {"enabled": dtype == torch.bfloat16},
        }  # fmt: skip
        engine, optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=_adamw(model), dist_init_required=False, config=configuration
        )
        trial.weights_of = deepspeed.utils.safe_get_full_fp32_param
        trial.gradient_of = deepspeed.utils.safe_get_full_grad
        trial.begin(engine.module, optimizer)
        for batch in trial.batches():
            inputs, targets = part_of(batch, rank, ranks)
            loss = loss_of(engine, (inputs.to(dtype), targets.to(dtype)))
            engine.backward(loss)
            trial.step(optimizer.optimizer, engine.step)
            trial.log_from_first(loss, rank)

    return train
