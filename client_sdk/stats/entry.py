"""An entry: one tensor to measure at one step, with everything that the optimizer keeps about it.

Owns the reading of tensors of any kind as vectors of real numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from client_sdk.stats.sums import Coordinates, Flags


class Entry(NamedTuple):
    """A tensor to measure at this step; a tuple, because one is created for each tensor at each step."""

    parameter: Tensor
    """Local part of the parameter, after the step."""
    grad: Tensor
    """Gradient in the shape of the parameter."""
    first: Tensor | None
    """First moment m in the shape of the parameter, if there is one."""
    second: Tensor | None
    """Second moment v in the shape of the parameter, if there is one."""
    flags: Flags
    """Branches that the formulas take for this tensor."""
    row: int
    """Row of the tensor's layer in the block."""
    parameter_index: int
    """Position of the parameter in `Layers.parameters`."""

    def coordinates(self) -> Coordinates:
        """Return the tensors as vectors [n], as views if they are contiguous."""
        return Coordinates(
            g=flat(self.grad),
            w=flat(self.parameter),
            m=None if self.first is None else flat(self.first),
            v=None if self.second is None else flat(self.second),
        )


def flat(tensor: Tensor) -> Tensor:
    """Return ``tensor`` as a vector [n] of real numbers, a view if it is contiguous. Call it under `no_grad`."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of the computation: float64 for float64 and complex128 parameters, float32 for all others."""
    return torch.float64 if tensor.dtype in (torch.float64, torch.complex128) else torch.float32
