"""The layers of a model, which are the rows of every layer statistic.

Owns the names, order and sizes of layers and the lookup from a parameter to its row. Measures nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client_sdk.errors import ConfigurationError
from client_sdk.protocol import MAX_LAYERS, MAX_NAME_CHARS

_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_DATA_PARALLEL = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)

Group = str | Callable[[str], str | None]
"""Grouping of parameters into layers: "parameter", "module", or a function from a parameter's name to a layer's."""


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Layers that one `watch` measures."""

    names: tuple[str, ...]
    """Names of the layers in the order of their rows."""
    sizes: tuple[int, ...]
    """Number of real numbers in each layer; a complex parameter counts two for each element."""
    row_of: dict[int, int]
    """Row of each measured parameter, keyed by the parameter's id."""
    parameters: tuple[Tensor, ...]
    """Measured parameters, held so that an id cannot be reused for another tensor."""
    parameter_names: tuple[str, ...]
    """Name of each measured parameter in the model."""
    known: frozenset[int]
    """Ids of all parameters that have a row or need none; the gradient of any other parameter is unexpected."""
    grouped: str
    """Grouping that was used: "parameter", "module" or "custom"."""


def map_layers(model: torch.nn.Module, optimizer: torch.optim.Optimizer, group: Group = "parameter") -> Layers:
    """Return the layers of the trainable parameters that ``model`` and ``optimizer`` share, in the model's order.

    A parameter that is used in several places counts once, under its first name. Frozen parameters and parameters that
    the optimizer does not have are left out. More than 20,000 parameters are grouped by module.
    Raises `ConfigurationError` if nothing is left to watch, or if there are too many layers.
    """
    owned = {id(parameter) for entry in optimizer.param_groups for parameter in entry["params"]}
    shared = [(name, parameter) for name, parameter in named_parameters(model) if id(parameter) in owned]
    if not shared:
        raise ConfigurationError(
            "the optimizer shares no parameter with the model: create it from model.parameters(), after the model is "
            "wrapped or moved"
        )
    trainable = [(name, parameter) for name, parameter in shared if parameter.requires_grad]
    if not trainable:
        raise ConfigurationError(
            "every parameter that model and optimizer share is frozen: set requires_grad on those to be trained"
        )
    known = frozenset(owned - {id(parameter) for _, parameter in shared if not parameter.requires_grad})
    return group_layers(trainable, group, known)


def group_layers(named: Sequence[tuple[str, Tensor]], group: Group, known: frozenset[int]) -> Layers:
    """Return the layers of some parameters, each with its name. More than 20,000 are grouped by module.

    ``known`` is `Layers.known`. Raises `ConfigurationError` if nothing is left, or if there are too many layers.
    """
    grouped = group if isinstance(group, str) else "custom"
    layers = _rows(named, _layer_of(group), grouped, known)
    if len(layers.names) > MAX_LAYERS and group == "parameter":
        layers = _rows(named, _layer_of("module"), "module", known)
    if not layers.names:
        raise ConfigurationError(
            "group left out every parameter: it must return a layer name instead of None for at least one of them"
        )
    if len(layers.names) > MAX_LAYERS:
        raise ConfigurationError(
            f"the model has {len(layers.names)} layers; at most {MAX_LAYERS} are supported: pass group= a function "
            "that gives several parameters the same layer name"
        )
    return layers


def named_parameters(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the model's parameters with their original names, each shared parameter once.

    Parts of names that `torch.compile`, activation checkpointing and data parallelism (DDP, FSDP) add are removed.
    """
    is_wrapped = {name for name, module in model.named_modules() if isinstance(module, _DATA_PARALLEL)}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        kept = [
            part
            for at, part in enumerate(parts)
            if part not in _WRAPPERS and not (part == "module" and ".".join(parts[:at]) in is_wrapped)
        ]
        yield ".".join(kept), parameter


def size_of(parameter: Tensor) -> int:
    """Return the number of real numbers in ``parameter``."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def _layer_of(group: Group) -> Callable[[str], str | None]:
    if group == "parameter":
        return lambda name: name
    if group == "module":
        return lambda name: name.rpartition(".")[0] or name
    assert callable(group)
    return group


def _rows(
    named: Sequence[tuple[str, Tensor]], layer_of: Callable[[str], str | None], grouped: str, known: frozenset[int]
) -> Layers:
    rows: dict[str, int] = {}
    sizes: list[int] = []
    row_of: dict[int, int] = {}
    for name, parameter in named:
        try:
            layer = layer_of(name)
        except Exception as error:
            raise ConfigurationError(f"group raised {type(error).__name__} for {name!r}: {error}") from error
        if layer is None:
            continue
        if not isinstance(layer, str) or not layer:
            raise ConfigurationError(f"group returned {layer!r} for {name!r}; it must return a layer name or None")
        row = rows.setdefault(_bounded(layer), len(rows))
        if row == len(sizes):
            sizes.append(0)
        sizes[row] += size_of(parameter)
        row_of[id(parameter)] = row
    measured = [(name, parameter) for name, parameter in named if id(parameter) in row_of]
    return Layers(
        names=tuple(rows),
        sizes=tuple(sizes),
        row_of=row_of,
        parameters=tuple(parameter for _, parameter in measured),
        parameter_names=tuple(name for name, _ in measured),
        known=known,
        grouped=grouped,
    )


def _bounded(name: str) -> str:
    """Return ``name``, or its two ends around a digest if it is longer than the wire allows."""
    if len(name) <= MAX_NAME_CHARS:
        return name
    digest = hashlib.blake2s(name.encode(), digest_size=4).hexdigest()
    half = (MAX_NAME_CHARS - len(digest) - 2) // 2
    return f"{name[:half]}…{digest}…{name[-half:]}"
