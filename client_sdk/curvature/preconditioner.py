"""The current preconditioner of an optimizer as one vector: D = diag(η)·gain/(root·√v + floor) / η_max.

Owns the vector layout of the parameter space and the norm in which the optimizer moves. Ĥ = D·H is the preconditioned
Hessian of Bai et al. (ICML 2026), whose largest eigenvalue λ_max is compared with 2/η_max. It is similar to the
symmetric matrix D^½·H·D^½, which is the one that is iterated on. Optimizers whose update is divided by something else
than √v say what it is in `Family.diagonal`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.distributed import local
from client_sdk.optimizers import (
    TERM,
    Kind,
    Moment,
    dense,
    has_limit,
    own_diagonal,
    read_steps,
    read_update_rule,
    second_moment,
    term_table,
)

SMALL: Final = 2**20  # coordinates up to which all parameters are read together, at the memory of a few vectors more


class UnsupportedError(Exception):
    """Curvature cannot be measured for this model and optimizer; the text gives the reason."""


@dataclass(frozen=True, kw_only=True)
class Preconditioner:
    """The preconditioner D of the parameters that the optimizer moves, N numbers in total.

    Of a parameter that is divided among several ranks, vectors have the part that this rank holds.
    """

    parameters: tuple[Tensor, ...]
    """Parameters in the order of the vector layout."""
    diagonal: Tensor
    """Diagonal of D, [N]."""
    penalty: Tensor | None
    """L2 weight decay γ of each coordinate, [N], as the optimizer descends H + γ; None if it is zero everywhere."""
    lr: Tensor
    """Largest learning rate η_max of the parameter groups, 0-d, on the device of the step counters."""

    @cached_property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Shape of what this rank holds of each parameter."""
        return tuple(local(parameter.detach()).shape for parameter in self.parameters)

    @cached_property
    def is_divided(self) -> bool:
        """Whether some parameters are DTensors, of which this rank may hold a part."""
        return any(map(is_dtensor, self.parameters))

    @classmethod
    def read(cls, optimizer: torch.optim.Optimizer, kind: Kind, *, takes_parts: bool = False) -> Preconditioner | None:
        """Return the current preconditioner of ``optimizer``, or None before its first step.

        With ``takes_parts`` the parameters may be divided among the ranks that measure together. Never synchronises a
        device. Raises `UnsupportedError` if the stability limit of the optimizer is not known, or if the parameters do
        not fit one vector (complex, sharded, or on several devices).
        """
        if not has_limit(kind, optimizer):
            raise UnsupportedError(
                f"the stability limit of {type(optimizer).__name__} is not known, so λ_grad and λ_max are not "
                "measured; docs/explanation/science.md lists the optimizers that have one"
            )
        parameters: list[Tensor] = []
        seconds: list[Tensor | Moment | None] = []
        own: list[Tensor | None] = []
        tables: list[Tensor] = []
        squared = True
        for group in optimizer.param_groups:
            rule = read_update_rule(kind, optimizer, group)
            squared = rule.squared
            members: list[Tensor] = []
            states: list[Mapping[str, Any]] = []
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                values = parameter
                if is_dtensor(parameter):
                    state = {name: local(value) for name, value in state.items()}
                    values = local(parameter.detach())
                second = second_moment(rule, state, values)
                if not parameter.requires_grad or (rule.second is not None and second is None):
                    if is_dtensor(parameter) and parameter.requires_grad and state:
                        raise UnsupportedError(f"curvature of shards under {type(optimizer).__name__} is not measured")
                    continue
                _check(parameter, takes_parts=takes_parts)
                members.append(parameter)
                states.append(state)
                seconds.append(second)
                own.append(own_diagonal(rule, group, state, values))
            if members:
                parameters += members
                tables.append(torch.as_tensor(term_table(rule, read_steps(rule, states), states)))
        if not parameters:
            return None
        device = parameters[0].device
        if any(parameter.device != device for parameter in parameters):
            raise UnsupportedError("curvature of a model on several devices is not measured")
        return cls._assemble(parameters, seconds, own, tables, squared)

    @classmethod
    def _assemble(
        cls,
        parameters: list[Tensor],
        seconds: list[Tensor | Moment | None],
        own: list[Tensor | None],
        tables: list[Tensor],
        squared: bool,
    ) -> Preconditioner:
        device, dtype = parameters[0].device, vector_dtype(parameters)
        home = next((table.device for table in tables if table.device.type != "cpu"), torch.device("cpu"))
        table = torch.cat([part.to(home, non_blocking=True) for part in tables])
        lr = table[:, TERM["lr"]].max()
        factor = (table[:, TERM["gain"]] * table[:, TERM["lr"]] / lr).to(dtype).to(device, non_blocking=True)
        root = table[:, TERM["root"]].to(dtype).to(device, non_blocking=True)
        floor = table[:, TERM["floor"]].to(dtype).to(device, non_blocking=True)
        sizes = [local(parameter.detach()).numel() for parameter in parameters]
        if (
            sum(sizes) <= SMALL
            and all(isinstance(second, Tensor) for second in seconds)
            and not any(map(_is_given, own))
        ):
            # One operation for all parameters, which takes less time than the arithmetic itself for each of them.
            v = torch.cat([dense(second).reshape(-1).to(dtype) for second in seconds if second is not None])
            counts = torch.tensor(sizes, device=device)
            factor, root, floor = (torch.repeat_interleave(each, counts) for each in (factor, root, floor))
            pieces = [factor / ((v.sqrt() if squared else v) * root).add_(floor)]
        else:
            pieces = _pieces(parameters, seconds, own, (factor, root, floor), squared=squared)
        penalty = None
        coupled = table[:, TERM["coupled"]]
        if table.device.type != "cpu" or bool((coupled != 0).any()):
            coupled = coupled.to(dtype).to(device, non_blocking=True)
            penalty = torch.cat([coupled[at].expand(len(piece)) for at, piece in enumerate(pieces)])
        return cls(parameters=tuple(parameters), diagonal=torch.cat(pieces), penalty=penalty, lr=lr)


def _pieces(
    parameters: Sequence[Tensor],
    seconds: Sequence[Tensor | Moment | None],
    own: Sequence[Tensor | None],
    terms: tuple[Tensor, Tensor, Tensor],
    *,
    squared: bool,
) -> list[Tensor]:
    """Return the part of D of each parameter; ``terms`` are factor, root and floor, [P] each."""
    factor, root, floor = terms
    pieces = []
    for position, (parameter, second, inverse) in enumerate(zip(parameters, seconds, own, strict=True)):
        if inverse is not None:
            pieces.append(factor[position] * inverse.to(factor.dtype))
        elif second is None:
            pieces.append(factor[position].expand(local(parameter.detach()).numel()))
        else:
            v = dense(second).to(factor.dtype)
            pieces.append(factor[position] / ((v.sqrt() if squared else v) * root[position]).add_(floor[position]))
    return pieces


def _is_given(inverse: Tensor | None) -> bool:
    return inverse is not None


def vector_dtype(parameters: Sequence[Tensor]) -> torch.dtype:
    """Return float64 if any parameter is float64, else float32."""
    return torch.float64 if any(parameter.dtype == torch.float64 for parameter in parameters) else torch.float32


def to_vector(tensors: Sequence[Tensor | None], preconditioner: Preconditioner) -> Tensor:
    """Return tensors in the shapes of the parameters, or of their parts, as one vector [N], with zeros for None."""
    dtype, device = preconditioner.diagonal.dtype, preconditioner.diagonal.device
    return torch.cat([
        torch.zeros(shape.numel(), device=device, dtype=dtype) if tensor is None else tensor.reshape(-1).to(dtype)
        for tensor, shape in zip(tensors, preconditioner.shapes, strict=True)
    ])  # fmt: skip


def from_vector(vector: Tensor, preconditioner: Preconditioner) -> list[Tensor]:
    """Return the parts of a vector [N] in the shapes and dtypes of the parameters, or of their parts."""
    pieces = vector.split([shape.numel() for shape in preconditioner.shapes])
    return [
        piece.view(shape).to(parameter.dtype)
        for piece, shape, parameter in zip(pieces, preconditioner.shapes, preconditioner.parameters, strict=True)
    ]


def is_dtensor(parameter: Tensor) -> bool:
    """Return whether ``parameter`` is a DTensor, of which this rank may hold a part."""
    return hasattr(parameter, "to_local")


def _check(parameter: Any, *, takes_parts: bool) -> None:
    if parameter.is_complex():
        raise UnsupportedError("curvature of complex parameters is not measured")
    if is_dtensor(parameter) and not takes_parts and parameter.device_mesh.size() > 1:
        raise UnsupportedError("curvature of a model that is sharded over processes is not measured")


def same_tensors(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    """Return whether both have the same tensors in the same order."""
    return len(first) == len(second) and all(one is other for one, other in zip(first, second, strict=True))
