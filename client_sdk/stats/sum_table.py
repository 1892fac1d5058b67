"""The sums of one step on their devices, one packed table for each, and their copy to the host.

Owns the form in which sums leave a device. Partial sums of the same tensor, such as those of several ranks that each
hold a shard of it, are in the same row and may be added; a sum that does not exist for a tensor is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_sdk.host import TensorCopy
from client_sdk.measurement import HostCopy
from client_sdk.stats.sums import SUMS


@dataclass(frozen=True, kw_only=True)
class SumTable:
    """Sums of the tensors of one device at one step."""

    positions: NDArray[np.intp]
    """Position of each tensor in the list of all tensors of the step, [P]."""
    parameters: NDArray[np.intp]
    """Position of each tensor's parameter in `Layers.parameters`, [P], which is the same at every step."""
    values: Tensor
    """Values of `SUMS`, [P, len(SUMS)] float64 (float32 on MPS); NaN where a sum does not exist for a tensor."""


StartCopy = Callable[[Sequence[SumTable]], HostCopy]
"""Start of the copy to the host. Its array holds the values of `SUMS` of all tensors of the step, [P, len(SUMS)], in
the order of `SumTable.positions`. A reduction over several processes happens here, before the copy."""


class TablesCopy:
    """The tables of all devices on their way to the host; implements `measurement.HostCopy` and is a `StartCopy`."""

    def __init__(self, tables: Sequence[SumTable]) -> None:
        """Start copying ``tables``, one copy for each device. Returns at once, without a device synchronisation."""
        self._parts = [(table.positions, TensorCopy(table.values)) for table in tables]

    def ready(self) -> bool:
        """Return whether `array` returns without waiting. Never synchronises a device."""
        return all(copy.ready() for _, copy in self._parts)

    def array(self) -> NDArray[np.float64]:
        """Return the sums of all tensors of the step, [P, len(SUMS)], after waiting for the copies if necessary."""
        values = np.full((sum(len(positions) for positions, _ in self._parts), len(SUMS)), np.nan)
        for positions, copy in self._parts:
            values[positions] = copy.array()
        return values


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of sums on ``device``: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
