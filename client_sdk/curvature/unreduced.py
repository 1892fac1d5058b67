"""Forward passes of DistributedDataParallel without its collectives, for closures that are differentiated aside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def without_reduction() -> Iterator[None]:
    """Let every DistributedDataParallel that is called inside only compute, without collectives of its own.

    Its forward pass otherwise exchanges buffers, and prepares for a backward pass that it does not see, because a
    closure is differentiated with `torch.autograd.grad`. What it remembers of the training's last forward pass is as
    before afterwards.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        yield
        return
    wrapper: Any = torch.nn.parallel.DistributedDataParallel
    forward = wrapper.forward
    saved: dict[int, tuple[Any, bool, bool]] = {}

    def forward_alone(self: Any, *arguments: Any, **options: Any) -> Any:
        saved.setdefault(id(self), (self, self.require_backward_grad_sync, self.require_forward_param_sync))
        self.require_backward_grad_sync = self.require_forward_param_sync = False
        return forward(self, *arguments, **options)

    wrapper.forward = forward_alone  # a hook of all modules would make compiled ones warn
    try:
        yield
    finally:
        wrapper.forward = forward
        for module, backward_sync, forward_sync in saved.values():
            module.require_backward_grad_sync, module.require_forward_param_sync = backward_sync, forward_sync
