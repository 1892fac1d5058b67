"""Whether gradients were zeroed between two steps, and how many micro-batches arrived. Called on the training thread.

A hook on one parameter sees each gradient before it is added to those that are there. It changes nothing, and is there
for a few steps out of a thousand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from client_sdk.audit.fault import Fault
from client_sdk.audit.samples import is_plain
from client_sdk.host import TensorCopy

WATCHED: Final = 4  # steps in a row before which arrivals are seen
EVERY: Final = 1024  # steps between such spells
STALE: Final = 2  # intervals between steps whose gradients were never zeroed, so that the third step names it


class FreshGradients:
    """The gradients that arrive between two steps of an optimizer."""

    def __init__(self, on_arrival: Callable[[], None]) -> None:
        """``on_arrival`` is called when a gradient arrives."""
        self._on_arrival = on_arrival
        self.arrivals: int | None = None
        """Gradients that arrived before the last step, one for each backward pass; None if they were not seen."""
        self.is_aside = False
        """Whether gradients that are computed now belong to a probe."""
        self._parameter: Tensor | None = None
        self._handle: RemovableHandle | None = None
        self._held: Tensor | None = None  # gradient of the step before
        self._was_nonzero: TensorCopy | None = None
        self._sizes: list[TensorCopy | None] = []  # of what each arrival found
        self._stale = 0
        self._left = WATCHED

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """See the arrivals before the first step."""
        self._parameter = _chosen(optimizer, has_gradient=False)
        if self._parameter is not None:
            self._handle = self._parameter.register_hook(self._arrived)

    def extend(self) -> None:
        """See the arrivals before the next step, too."""
        self._left = max(self._left, 1)

    def before_step(self, step: int) -> Fault | None:
        """End an interval, and return the fault of gradients that were never zeroed."""
        self.arrivals = None
        parameter, held = self._parameter, self._held
        self._held = None
        if self._handle is None or parameter is None:
            self._stale = 0
            return None
        sizes, self._sizes = self._sizes, []
        self.arrivals = len(sizes)
        if not sizes or held is None or parameter.grad is not held:
            self._stale = 0
        else:
            was_nonzero = self._was_nonzero is not None and bool(self._was_nonzero.array() != 0)
            is_fresh = any(size is None or not size.array() for size in sizes)
            self._stale = self._stale + 1 if was_nonzero and not is_fresh else 0
        if self._stale < STALE:
            return None
        self.stop()
        return Fault(
            "gradients-not-zeroed",
            f"the gradients of the {self._stale} steps before step {step} were never zeroed: each new gradient was "
            "added to the old ones",
            evidence={"steps": self._stale, "optimizer_step": step},
        )

    def after_step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Begin an interval if arrivals are to be seen in it."""
        if step % EVERY == 0:
            self._left = WATCHED
        if self._left <= 0:
            if self._handle is not None:
                self.stop()
            return
        self._left -= 1
        if self._handle is None:
            self._parameter = _chosen(optimizer)
            if self._parameter is None:
                return
            self._handle = self._parameter.register_hook(self._arrived)
        assert self._parameter is not None
        if self._parameter.grad is None and (other := _chosen(optimizer)) is not None:  # it is not used by this step
            self._handle.remove()
            self._parameter, self._handle = other, other.register_hook(self._arrived)
        if self._parameter.grad is not None and not is_plain(self._parameter.grad):  # a sparse gradient
            self.stop()
            return
        self._sizes = []
        self._held = self._parameter.grad
        if self._held is not None:
            self._was_nonzero = _count(self._held)

    def stop(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._parameter, self._held, self._was_nonzero, self._sizes = None, None, None, None, []

    def _arrived(self, gradient: Tensor) -> None:
        """Note what a new gradient is added to; a hook of `torch.Tensor.register_hook`."""
        if self.is_aside or self._parameter is None:
            return
        self._on_arrival()
        present = self._parameter.grad
        self._sizes.append(None if present is None or present is not self._held else _count(present))


@torch.no_grad()
def _count(gradient: Tensor) -> TensorCopy:
    return TensorCopy(torch.count_nonzero(gradient))


def _chosen(optimizer: torch.optim.Optimizer, *, has_gradient: bool = True) -> Tensor | None:
    """Return a small parameter, with a gradient or any, one of the last layers, whose gradient arrives first."""
    present = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
        and parameter.is_leaf
        and is_plain(parameter)
        and (not has_gradient if parameter.grad is None else is_plain(parameter.grad))
    ]
    return min(reversed(present), key=lambda parameter: parameter.numel(), default=None)
