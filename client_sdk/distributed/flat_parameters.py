"""The flat parameters of FSDP1 without `use_orig_params`: where the parameters of a model lie in this rank's shards.

Reads what torch.distributed.fsdp documents of its `FlatParameter`: the names of the parameters, and the range of each
within the shard. Where a version of torch has no such attributes, each flat parameter stays one layer.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from client_sdk.distributed.partition import Location, Partition
from client_sdk.distributed.placements import holdings_of
from client_sdk.layers import named_parameters


def read_flat_parameters(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Partition | None:
    """Return the fragments of the flat parameters that ``optimizer`` steps.

    None stands for an optimizer that has none, has others beside them or frozen ones, or whose flat parameters do not
    say what they hold.
    """
    if "torch.distributed.fsdp" not in sys.modules:  # not loaded here: whoever has such a model has loaded it
        return None
    name_of = {id(parameter): name for name, parameter in named_parameters(model)}
    flats: list[Any] = []
    group_of: list[int] = []
    for at, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in name_of or not _is_described(parameter) or not parameter.requires_grad:
                return None
            flats.append(parameter)
            group_of.append(at)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    holdings = holdings_of(model, rank)
    order = {id(module): at for at, module in enumerate(model.modules())}
    found: list[tuple[int, Location]] = []
    for at, flat in enumerate(flats):
        unit = name_of[id(flat)].rpartition(".")[0]
        described = zip(flat._param_infos, flat._fqns, flat._shard_param_infos, strict=True)
        for owner, name, shard in described:
            location = Location(
                name=f"{unit}.{name}" if unit else name,
                flat=at,
                start=shard.offset_in_shard if shard.in_shard else 0,
                size=shard.numel_in_shard if shard.in_shard else 0,
                holding=holdings[id(flat)],
            )
            found.append((order.get(id(owner.module), len(order)), location))
    if not found:
        return None
    found.sort(key=lambda pair: pair[0])  # as the layers of the model stand, whatever unit they are in
    return Partition(optimizer, flats, group_of, [location for _, location in found])


def _is_described(parameter: Any) -> bool:
    return all(hasattr(parameter, name) for name in ("_param_infos", "_fqns", "_shard_param_infos"))
