"""The hooks of a watched optimizer, which call a watcher before and after every step."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.utils.hooks import RemovableHandle


class StepObserver(Protocol):
    """The object whose methods the hooks call; `Watcher` implements it."""

    def before_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Hook of `torch.optim.Optimizer.register_step_pre_hook`. Must not raise."""
        ...

    def after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Hook of `torch.optim.Optimizer.register_step_post_hook`. Must not raise."""
        ...


class StepHooks:
    """Hooks of one optimizer until `remove` is called."""

    def __init__(self, optimizer: torch.optim.Optimizer, observer: StepObserver) -> None:
        """Register the hooks."""
        # Without `disable`, a compiled optimizer.step would try to compile the measuring too.
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(torch.compiler.disable(observer.before_step)),
            optimizer.register_step_post_hook(torch.compiler.disable(observer.after_step)),
        ]

    def remove(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()
