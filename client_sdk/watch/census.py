"""The census of an optimizer's parameters, which tells when the layers no longer fit them."""

from __future__ import annotations

import torch

from client_sdk.layers import Layers


class Census:
    """Parameters of an optimizer as they were when they were mapped to layers."""

    def __init__(self, optimizer: torch.optim.Optimizer, layers: Layers) -> None:
        """Count the parameters of ``optimizer``, which were mapped to ``layers``."""
        self._count = _count(optimizer)
        self._unmapped = tuple(
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if id(parameter) not in layers.known
        )
        self._is_final = False

    def is_outdated(self, optimizer: torch.optim.Optimizer, *, has_newcomers: bool) -> bool:
        """Return whether parameters were added, removed or unfrozen since.

        ``has_newcomers`` tells that a measurement met a parameter that has no layer. Costs next to nothing.
        """
        if _count(optimizer) != self._count:
            return True
        return not self._is_final and (has_newcomers or any(parameter.grad is not None for parameter in self._unmapped))

    def keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the present parameters as they are, as a new mapping of them to layers gave nothing new."""
        self._count, self._is_final = _count(optimizer), True


def _count(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)
