"""Copies of device values to the host that never block: pinned memory and an event on CUDA, plain copies elsewhere.

Both classes implement `client_sdk.measurement.HostCopy`. A copy may be read from any thread, and more than once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class TensorCopy:
    """A snapshot of one tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        """Start copying ``tensor``, which must not be written afterwards and is not kept.

        Does not synchronise the device, except where asynchronous copies are not supported (MPS).
        """
        tensor = tensor.detach()
        self._event: Any = None
        if tensor.device.type == "cuda":
            with torch.cuda.device(tensor.device):
                self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                self._host.copy_(tensor, non_blocking=True)
                self._event = torch.cuda.Event()
                self._event.record()
        else:
            self._host = tensor.cpu()

    def ready(self) -> bool:
        """Return whether `array` returns without waiting. Never synchronises a device."""
        return self._event is None or bool(self._event.query())

    def array(self) -> NDArray[np.float64]:
        """Return the values as float64 in the shape of the tensor, after waiting for the copy if necessary."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.to(torch.float64).numpy()


class ScalarCopy:
    """A snapshot of n one-element tensors, of any devices and dtypes, on their way to the host together."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Start copying ``tensors``, one copy for each device. Returns at once, without a device synchronisation."""
        by_device: dict[torch.device, list[int]] = {}
        for position, tensor in enumerate(tensors):
            by_device.setdefault(tensor.device, []).append(position)
        self._count = len(tensors)
        self._parts = []
        for device, positions in by_device.items():
            widest = torch.float32 if device.type == "mps" else torch.float64
            # stack creates a new tensor, so later changes of the originals by the training are not seen
            stacked = torch.stack([tensors[position].detach().reshape(()).to(widest) for position in positions])
            self._parts.append((positions, TensorCopy(stacked)))

    def ready(self) -> bool:
        """Return whether `array` returns without waiting. Never synchronises a device."""
        return all(copy.ready() for _, copy in self._parts)

    def array(self) -> NDArray[np.float64]:
        """Return the values in the order of the tensors, shape (n,), after waiting for the copies if necessary."""
        values = np.full(self._count, np.nan)
        for positions, copy in self._parts:
            values[positions] = copy.array()
        return values
