"""The division of a parameter among ranks: which of them together hold one complete copy of it.

Reads the public descriptions of tensors: the mesh and placements of a DTensor, the process group of an FSDP1 module.
Communicates with nobody and measures nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

Copy = tuple[int, ...]
"""Ranks that together hold every coordinate of a parameter once, in the order of their parts."""

OWN: Final[tuple[Copy, ...]] = ()
"""Copies of a parameter of which this rank, like every other one that has it, holds a complete copy of its own."""


@dataclass(frozen=True, kw_only=True)
class Holding:
    """Division of one parameter, as far as this rank knows it."""

    copies: tuple[Copy, ...] = OWN
    """Complete copies that this rank knows of, or `OWN`."""
    is_flat: bool = False
    """Whether the tensor is the local part alone, so that its size is not the parameter's (FSDP1)."""
    is_declared: bool = False
    """Whether training keeps the copies of all ranks equal (DistributedDataParallel); otherwise values are compared."""
    obstacle: str = ""
    """Reason for which partial sums of this parameter cannot be added, or empty."""

    @property
    def is_own(self) -> bool:
        """Whether this rank holds a complete copy of its own."""
        return not self.copies and not self.obstacle


def holdings_of(model: torch.nn.Module, rank: int) -> dict[int, Holding]:
    """Return the holding of each parameter of ``model``, keyed by the parameter's id. ``rank`` is the global rank."""
    holdings = {id(parameter): holding_of(parameter) for parameter in model.parameters()}
    for module in model.modules():  # an inner module comes after the one that contains it, and decides
        found = _module_holding(module, rank)
        if found is None:
            continue
        for parameter in module.parameters():
            if found.is_flat or holdings[id(parameter)].is_own:
                holdings[id(parameter)] = found
    return holdings


def local(tensor: Any) -> Tensor:
    """Return the part of a distributed tensor that this process holds, or ``tensor`` itself if it is a plain one."""
    held: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return held


def local_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer that makes this rank's part of the step: the inner one of a ZeroRedundancyOptimizer."""
    optim = sys.modules.get("torch.distributed.optim")  # not loaded here: whoever has such an optimizer has loaded it
    if optim is None or not isinstance(optimizer, optim.ZeroRedundancyOptimizer):
        return optimizer
    inner: torch.optim.Optimizer = optimizer.optim
    return inner


def is_divided_alike(parameter: Tensor, grad: Tensor) -> bool:
    """Return whether local parts of a gradient belong to the local part of the parameter.

    They do not where a gradient of tensor parallelism is still a partial sum.
    """
    placements = getattr(parameter, "placements", None)
    return placements is None or tuple(getattr(grad, "placements", ())) == tuple(placements)


def holding_of(parameter: Tensor) -> Holding:
    """Return the holding of one parameter as far as its tensor tells, without the module that it belongs to."""
    if hasattr(parameter, "placements") and hasattr(parameter, "device_mesh"):
        return _dtensor_holding(parameter)
    if getattr(parameter, "tensor_model_parallel", False):
        return Holding(obstacle="it is a shard of Megatron's tensor parallelism, which does not say whose")
    return Holding()


def _dtensor_holding(parameter: Any) -> Holding:
    """Return the copies of a DTensor: one for each position along the replicated dimensions of its mesh."""
    placements = parameter.placements
    if any(placement.is_partial() for placement in placements):
        return Holding(obstacle="its values are partial sums")
    mesh: Tensor = parameter.device_mesh.mesh
    replicated = [at for at, placement in enumerate(placements) if placement.is_replicate()]
    sharded = [at for at, placement in enumerate(placements) if not placement.is_replicate()]
    ranks = mesh.permute(*replicated, *sharded).reshape(-1, max(1, _product(mesh, sharded))).tolist()
    return Holding(copies=tuple(tuple(copy) for copy in ranks))


def _product(mesh: Tensor, dimensions: list[int]) -> int:
    size = 1
    for dimension in dimensions:
        size *= mesh.shape[dimension]
    return size


def _module_holding(module: torch.nn.Module, rank: int) -> Holding | None:
    """Return what a wrapper of data parallelism says of the parameters within it, or None for any other module."""
    if isinstance(module, torch.nn.parallel.DistributedDataParallel):
        return Holding(is_declared=True)
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not loaded here: whoever has such a module has loaded it
    if fsdp is None or not isinstance(module, fsdp.FullyShardedDataParallel):
        return None
    wrapper: Any = module
    if wrapper.sharding_strategy == fsdp.ShardingStrategy.NO_SHARD:
        return Holding(is_declared=True)
    group = wrapper.process_group
    ranks = tuple(torch.distributed.get_process_group_ranks(group))
    if rank not in ranks:
        return Holding(obstacle="this rank is not in the process group of its FSDP module")
    return Holding(copies=(ranks,), is_flat=True)
