"""Memory of a forward and a backward pass, judged by what training has needed for its own.

Where ranks make a pass together, one that runs out of memory within it leaves the others waiting. It must therefore be
known before the pass that the memory suffices. On CUDA alone; elsewhere nothing is known and nothing is checked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PassMemory:
    """Memory that one pass takes on one device."""

    def __init__(self, device: torch.device, grads: Sequence[Tensor]) -> None:
        """Judge it between two passes of the training: the peak so far above what is allocated now.

        ``grads`` are the gradients of this process, which the pass makes anew while these are kept.
        """
        self._device = device
        self._needed = 0
        if device.type == "cuda":
            kept = sum(grad.numel() * grad.element_size() for grad in grads)
            peak, now = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
            self._needed = peak - now + kept

    def check(self) -> None:
        """Raise `torch.OutOfMemoryError` if a pass would not fit now."""
        if self._device.type != "cuda":
            return
        free, _ = torch.cuda.mem_get_info(self._device)
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        if free + unused < self._needed:
            raise torch.OutOfMemoryError(
                f"a pass needs {self._needed:,} bytes, and {free + unused:,} are left beside the vectors of curvature"
            )
