"""Gradients as the optimizer was given them, also if its step writes into them.

Owns the comparison of tensor versions over a step, and the copies from before it. Most optimizers leave gradients as
they are, and these are read after the step, at no cost. If a step has written into a gradient, what that step was given
is not known; from the next measured step on, gradients are copied before the step as far as `COPY_BYTES` allow, and of
the rest the sums that need the gradient alone are taken before the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from client_sdk.distributed import local
from client_sdk.stats.entry import flat
from client_sdk.stats.sum_table import wide_dtype

COPY_BYTES: Final = 24 * 2**20
"""Bytes of gradients that are copied at most."""
CHUNK: Final = 2**20  # coordinates that are summed at a time


class GradientReader:
    """Gradients of the step under way."""

    def __init__(self) -> None:
        self.is_overwritten = False
        """Whether a step has written into a gradient."""
        self._versions: dict[int, tuple[int, int]] = {}
        self._copies: dict[int, Tensor] = {}
        self._sums: dict[int, Tensor] = {}

    @torch.no_grad()
    def before_step(self, parameters: Sequence[Tensor]) -> None:
        """Note the versions of the gradients of ``parameters``, and copy them if that has become necessary."""
        self.release()
        left = COPY_BYTES
        for parameter in parameters:
            grad = parameter.grad
            if grad is None:
                continue
            self._versions[id(parameter)] = id(grad), grad._version
            if self.is_overwritten and not grad.is_sparse:
                held = local(grad)
                size = held.numel() * held.element_size()
                if size <= left:
                    left -= size
                    self._copies[id(parameter)] = held.clone()
                else:
                    self._sums[id(parameter)] = gradient_sums(held)

    def is_unchanged(self, parameter: Tensor) -> bool:
        """Return whether the step has left the gradient alone, as far as its version tells; True if it was not seen."""
        noted = self._versions.get(id(parameter))
        return noted is None or (parameter.grad is not None and noted == (id(parameter.grad), parameter.grad._version))

    def copy_of(self, parameter: Tensor) -> Tensor | None:
        """Return the copy of the local gradient from before the step, if there is one."""
        return self._copies.get(id(parameter))

    def sums_of(self, parameter: Tensor) -> Tensor | None:
        """Return the `gradient_sums` from before the step, if the gradient was too large to be copied."""
        return self._sums.get(id(parameter))

    def release(self) -> None:
        """Free the copies."""
        self._versions, self._copies, self._sums = {}, {}, {}


def gradient_sums(grad: Tensor) -> Tensor:
    """Return Σ g² and the count of NaN and infinities of a gradient, [2] float64 (float32 on MPS)."""
    values, wide = flat(grad), wide_dtype(grad.device)
    total = torch.zeros(2, device=grad.device, dtype=wide)
    for start in range(0, values.numel(), CHUNK):
        g = values[start : start + CHUNK].to(torch.float64 if values.dtype == torch.float64 else torch.float32)
        total += torch.stack([torch.dot(g, g).to(wide), torch.count_nonzero(g - g).to(wide)])
    return total
