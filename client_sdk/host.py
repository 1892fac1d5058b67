"""Device values on their way to the host, without a wait: pinned memory and an event on CUDA, at once on the CPU.

Owns the copies; knows nothing of what is copied. A `HostCopy` may be read from any thread, and more than once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class HostCopy:
    """A snapshot of one tensor, under way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        """``tensor`` must not be written afterwards; it is not kept. Does not synchronise, except on devices that
        know no asynchronous copy (MPS)."""
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
        """True when `array` will not wait. Never synchronises."""
        return self._event is None or bool(self._event.query())

    def array(self) -> NDArray[np.float64]:
        """The values as float64, in the tensor's shape; waits for the copy if it must."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.to(torch.float64).numpy()


class ScalarCopy:
    """Some one-element tensors, of any devices and dtypes, under way together."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        by_device: dict[torch.device, list[int]] = {}
        for position, tensor in enumerate(tensors):
            by_device.setdefault(tensor.device, []).append(position)
        self._count = len(tensors)
        self._parts = []
        for device, positions in by_device.items():
            widest = torch.float32 if device.type == "mps" else torch.float64
            # stack makes a new tensor: what training does to the originals afterwards is not seen
            stacked = torch.stack([tensors[position].detach().reshape(()).to(widest) for position in positions])
            self._parts.append((positions, HostCopy(stacked)))

    def ready(self) -> bool:
        """True when `values` will not wait. Never synchronises a device."""
        return all(copy.ready() for _, copy in self._parts)

    def values(self) -> list[float]:
        """One float a tensor, in order; waits for the copies if it must."""
        values = [float("nan")] * self._count
        for positions, copy in self._parts:
            for position, value in zip(positions, copy.array().tolist(), strict=True):
                values[position] = value
        return values


def copy_to_host(values: Sequence[Tensor]) -> ScalarCopy:
    """Start copying one-element tensors to the host; returns at once, without a device synchronisation."""
    return ScalarCopy(values)
