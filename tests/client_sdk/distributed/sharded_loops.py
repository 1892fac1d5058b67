"""Training loops of FSDP2 that log with a closure at unusual places; run on every rank of a process group."""

from __future__ import annotations

from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor

from client_sdk.distributed import local
from client_sdk.watch import watch
from tests.client_sdk.distributed.curvatures import slow_adam
from tests.client_sdk.distributed.trainings import ROWS, Net, Outcome, batch, part_of, recorded

Loop = Literal["accumulated", "between-passes", "kept-gathered", "bfloat16", "summed", "compiled", "frozen", "partly"]
"""Special feature of the loop.

`accumulated` logs while gradients of the first of two micro-batches wait for their reduction, and `between-passes`
between a forward pass and its backward pass. `kept-gathered` frees no gathered weights between the two, `bfloat16`
computes in 16 bits, `summed` does not divide the gradients by the number of ranks, `compiled` compiles each layer,
`frozen` trains a part of the layers, and `partly` shards one of them alone.
"""


class SmallNet(Net):
    """The network in float32."""

    def __init__(self) -> None:
        """Create the layers of `Net`."""
        super().__init__()
        self.float()


def fully_sharded_loop(rank: int, size: int, loop: Loop, *, has_closure: bool, steps: int = 10) -> Outcome:
    """Train a network that FSDP2 shards, and return what this rank recorded."""
    outcome = Outcome()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if loop == "bfloat16" else None)
    with recorded(rank, outcome) as run, patch("client_sdk.distributed.ballot.PATIENCE", 1e9):
        model = SmallNet() if loop == "bfloat16" else Net()
        mesh = init_device_mesh("cpu", (size,))
        for module in (model.thin,) if loop == "partly" else (model.wide, model.thin, model):
            if loop == "compiled" and module is not model:
                module.compile(backend="eager")
            if loop == "frozen" and module is model.wide:
                module.requires_grad_(False)
            fully_shard(module, mesh=mesh, reshard_after_forward=loop != "kept-gathered", mp_policy=policy)
        if loop == "summed":
            for module in (model.wide, model.thin, model):
                _fsdp(module).set_gradient_divide_factor(1.0)
        optimizer = slow_adam([parameter for parameter in model.parameters() if parameter.requires_grad])
        handle = watch(run, model, optimizer, every=1, curvature_every=1, budget=float("inf"))
        dist.barrier()
        for step in range(steps):
            rows, targets = (part_of(each, rank, size).to(local(model.norm.weight).dtype) for each in batch(step % 2))

            def closure(rows: Tensor = rows, targets: Tensor = targets) -> Tensor:
                loss = nn.functional.mse_loss(model(rows).float(), targets.float())
                return loss * (1 / size if loop == "summed" else 1)

            def log(step: int = step, closure=closure) -> None:  # type: ignore[no-untyped-def]
                run.log({"loss": 0.0} if rank == 0 else {}, step=step, closure=closure if has_closure else None)

            optimizer.zero_grad()
            if loop == "accumulated":
                _fsdp(model).set_requires_gradient_sync(False)
                closure().backward()
                log()
                _fsdp(model).set_requires_gradient_sync(True)
            loss = closure()
            if loop == "between-passes":
                log()
            loss.backward()
            if loop == "partly":
                _average(model, size)
            optimizer.step()
            if loop not in ("accumulated", "between-passes"):
                log()
        outcome.weights = {name: local(value).numpy().copy() for name, value in model.state_dict().items()}
        handle.remove()
    return outcome


def replicated_loop(rank: int, size: int, *, returns_dtensor: bool, steps: int = 8) -> Outcome:
    """Train a network whose weights are DTensors that every rank holds, and whose gradients remain partial sums."""
    outcome = Outcome()
    with recorded(rank, outcome) as run, patch("client_sdk.distributed.ballot.PATIENCE", 1e9):
        mesh = init_device_mesh("cpu", (size,))
        model = distribute_module(Net(), mesh)
        optimizer = slow_adam(model.parameters())
        handle = watch(run, model, optimizer, every=1, curvature_every=1, budget=float("inf"))
        dist.barrier()
        rows, targets = (distribute_tensor(each, mesh, [Shard(0)]) for each in batch(0))

        def closure() -> Tensor:
            loss: Any = (model(rows) - targets).square().sum() / (2 * ROWS)
            replicated: Tensor = loss.redistribute(placements=[Replicate()]) if returns_dtensor else loss.full_tensor()
            return replicated

        for step in range(steps):
            optimizer.zero_grad()
            closure().backward()
            optimizer.step()
            run.log({"loss": 0.0} if rank == 0 else {}, step=step, closure=closure)
        handle.remove()
    return outcome


def _average(model: nn.Module, size: int) -> None:
    """Average the gradients of the layers that are not sharded."""
    for parameter in model.parameters():
        if parameter.grad is not None and not hasattr(parameter, "to_local"):
            dist.all_reduce(parameter.grad)
            parameter.grad /= size


def _fsdp(model: nn.Module) -> FSDPModule:
    assert isinstance(model, FSDPModule)
    return model
