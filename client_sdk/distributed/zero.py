"""The layout of DeepSpeed's ZeRO: where the parameters of a model lie in the flat tensors that this rank steps.

Stages 1 and 2 join the parameters of a group and give each rank an equal part of the whole; stage 3 gives each rank a
part of every parameter. Reads public attributes of DeepSpeed's optimizer and parameters, imports nothing of it,
communicates with nobody, and checks what it finds against the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.distributed.partition import Location, Partition
from client_sdk.distributed.placements import OWN, Copy, Holding
from client_sdk.errors import ConfigurationError
from client_sdk.layers import named_parameters

_JOINED: Final = {
    "DeepSpeedZeroOptimizer": ("bit16_groups", "bit16_groups_flat"),
    "BF16_Optimizer": ("bf16_groups", "bf16_groups_flat"),
}
"""Classes of stages 1 and 2, with the attributes that hold the parameters of each group and the tensor joined of them.

The subclasses of DeepSpeed step in other ways and are not known.
"""
NO_CURVATURE: Final = "curvature is not measured with DeepSpeed, whose weights and state are divided"
_DIVIDED: Final = "DeepSpeedZeroOptimizer_Stage3"
"""Class of stage 3."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Coordinates of one parameter on this rank."""

    flat: int
    start: int
    size: int
    weights: Tensor
    """The same coordinates in the model, for the check."""
    holding: Holding


def zero_optimizer(model: torch.nn.Module, optimizer: object) -> Any | None:
    """Return the optimizer of DeepSpeed that ``optimizer`` is, holds or belongs to, or None.

    ``optimizer`` may be DeepSpeed's own, its engine, a wrapper such as accelerate's, or the optimizer that was given to
    `deepspeed.initialize`, if ``model`` is the engine.
    """
    part: object | None = optimizer
    while part is not None:
        if _is_deepspeeds(part) and not isinstance(part, torch.optim.Optimizer | torch.nn.Module):
            return part
        part = getattr(part, "optimizer", None)
    if _is_deepspeeds(model):
        owner = getattr(model, "optimizer", None)
        if _is_deepspeeds(owner) and getattr(owner, "optimizer", None) is optimizer:
            return owner
    return None


def module_of(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model within an engine of DeepSpeed, or ``model`` itself."""
    inner = getattr(model, "module", None)
    return inner if _is_deepspeeds(model) and isinstance(inner, torch.nn.Module) else model


def read_partition(model: torch.nn.Module, zero: Any) -> Partition:
    """Return this rank's part of ``model`` as the optimizer ``zero`` of DeepSpeed has divided it.

    Raises `ConfigurationError` if the layout is not one that is known, with the reason.
    """
    name = type(zero).__name__
    base = getattr(zero, "optimizer", None)
    if not isinstance(base, torch.optim.Optimizer) or (name not in _JOINED and name != _DIVIDED):
        raise _refusal(zero, "its layout of the weights is not known")
    try:
        flats, group_of, found = _divided(zero) if name == _DIVIDED else _joined(zero, base, *_JOINED[name])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _refusal(zero, f"its layout of the weights is not the expected one ({error})") from error
    locations = []
    for parameter_name, parameter in named_parameters(model):
        at = found.get(id(parameter))
        if at is None:
            continue
        if not _is_same(flats[at.flat].detach()[at.start : at.start + at.size], at.weights):
            raise _refusal(zero, f"{parameter_name} has other values than its part of the optimizer")
        locations.append(Location(name=parameter_name, flat=at.flat, start=at.start, size=at.size, holding=at.holding))
    if not locations:
        raise ConfigurationError(
            "the optimizer shares no parameter with the model: pass the engine and the optimizer that "
            "deepspeed.initialize returned"
        )
    return Partition(base, flats, group_of, locations, obstacle_to_curvature=NO_CURVATURE)


def _joined(
    zero: Any, base: torch.optim.Optimizer, groups: str, joined: str
) -> tuple[list[Tensor], list[int], dict[int, _Found]]:
    """Return flat tensors, the group of each, and the location of each parameter, by its id, in stages 1 and 2."""
    flats, found = [], {}
    for at, (parameters, whole) in enumerate(zip(getattr(zero, groups), getattr(zero, joined), strict=True)):
        (flat,) = base.param_groups[at]["params"]
        ranks, position = _group(zero.real_dp_process_group[at])
        if flat.numel() * len(ranks) != whole.numel():
            raise ValueError(f"{flat.numel()} of {whole.numel()} coordinates on {len(ranks)} ranks")
        flats.append(flat)
        begin = position * flat.numel()
        for parameter in parameters:
            offset = (parameter.data_ptr() - whole.data_ptr()) // whole.element_size()
            first, end = max(offset, begin), min(offset + parameter.numel(), begin + flat.numel())
            size = max(0, end - first)
            weights = parameter.detach().reshape(-1)
            found[id(parameter)] = _Found(
                flat=at,
                start=first - begin if size else 0,
                size=size,
                weights=weights[first - offset : end - offset] if size else weights[:0],
                holding=_holding(zero, parameter, ranks),
            )
    return flats, list(range(len(flats))), found


def _divided(zero: Any) -> tuple[list[Tensor], list[int], dict[int, _Found]]:
    """Return flat tensors, the group of each, and the location of each parameter, by its id, in stage 3."""
    flats = list(zero.fp32_partitioned_groups_flat)
    found = {}
    for at, parameters in enumerate(zero.fp16_groups):
        start = 0
        for parameter in parameters:
            share = parameter.partition_numel()  # the same on all ranks; the last ones may be filled up with anything
            ranks, position = _group(parameter.ds_process_group)
            size = min(max(0, parameter.ds_numel - position * share), share)
            found[id(parameter)] = _Found(
                flat=at,
                start=start,
                size=size,
                weights=parameter.ds_tensor.detach().reshape(-1)[:size],
                holding=_holding(zero, parameter, ranks),
            )
            start += share
        if start != flats[at].numel():
            raise ValueError(f"{start} of {flats[at].numel()} coordinates have a parameter")
    return flats, [zero.sub_group_to_group_id[at] for at in range(len(flats))], found


def _group(group: Any) -> tuple[Copy, int]:
    """Return the ranks of a process group, and the position of this one among them."""
    distributed = torch.distributed
    return tuple(distributed.get_process_group_ranks(group)), distributed.get_rank(group)


def _holding(zero: Any, parameter: Tensor, ranks: Copy) -> Holding:
    if not getattr(parameter, "allreduce", True):
        return Holding(obstacle="it is an expert of DeepSpeed's mixture, of which ranks hold several under one name")
    group = getattr(zero, "model_parallel_group", None)
    if group is not None and torch.distributed.get_world_size(group) > 1:
        return Holding(obstacle="DeepSpeed divides it by tensor parallelism too, and does not say how")
    return Holding(copies=(ranks,) if len(ranks) > 1 else OWN, is_flat=True, is_declared=len(ranks) == 1)


def _is_same(flat: Tensor, weights: Tensor) -> bool:
    """Return whether ``weights`` are those of the optimizer, rounded to their dtype."""
    if flat.shape != weights.shape:
        return False
    rounded = flat.to(weights.device, weights.dtype)
    return torch.allclose(rounded, weights, rtol=0.0, atol=0.0, equal_nan=True)


def _is_deepspeeds(value: object) -> bool:
    """Return whether the class of ``value`` is DeepSpeed's."""
    return type(value).__module__.partition(".")[0] == "deepspeed"


def _refusal(zero: object, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"watch() cannot measure {type(zero).__name__} of DeepSpeed: {reason}. log() works without watch(). ZeRO 1 "
        "to 3 can be measured without NVMe, ZenFlow and SuperOffload, and so can FSDP2 (fully_shard)"
    )
