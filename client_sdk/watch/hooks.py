"""The hooks of a watched optimizer, which call a watcher before and after every step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final, Protocol

import torch
from torch.utils.hooks import RemovableHandle

StepHook = Callable[[torch.optim.Optimizer, object, object], None]
_TORCH_FILE: Final = sys.modules[torch.optim.Optimizer.__module__].__file__
_LAST: Final = "_spikewatch_last_hooks"
"""Attribute of an optimizer with the hooks that are called after all others."""


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

    def __init__(self, optimizer: torch.optim.Optimizer, observer: StepObserver, *, are_last: bool = False) -> None:
        """Register the hooks.

        With ``are_last`` they are called after those of other observers, also of later ones. An observer that changes a
        step for its duration needs this, so that the others read the settings that the step had.
        """
        before: StepHook = observer.before_step
        after: StepHook = observer.after_step
        if _may_nest(optimizer):
            before, after = _outermost(before), _outermost(after)
        # Without `disable`, a compiled optimizer.step would try to compile the measuring too.
        self._before, self._after = torch.compiler.disable(before), torch.compiler.disable(after)
        self._optimizer = optimizer
        self._handles: list[RemovableHandle] = []
        self._register()
        last: tuple[StepHooks, ...] = getattr(optimizer, _LAST, ())
        for hooks in last:
            hooks._register()
        if are_last:
            setattr(optimizer, _LAST, (*last, self))

    def remove(self) -> None:
        """Remove the hooks."""
        self._unregister()
        last: tuple[StepHooks, ...] = getattr(self._optimizer, _LAST, ())
        if self in last:
            setattr(self._optimizer, _LAST, tuple(hooks for hooks in last if hooks is not self))

    def _register(self) -> None:
        """Register the hooks as the last of the optimizer."""
        self._unregister()
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before),
            self._optimizer.register_step_post_hook(self._after),
        ]

    def _unregister(self) -> None:
        while self._handles:
            self._handles.pop().remove()


def _may_nest(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step of the class may call the step of a parent class.

    Torch then calls all hooks of the optimizer twice, once an optimizer of the parent class itself has been created.
    """
    return sum("step" in vars(kind) for kind in type(optimizer).__mro__ if kind is not torch.optim.Optimizer) > 1


def _outermost(hook: StepHook) -> StepHook:
    """Return ``hook`` for the outermost of the nested steps of an optimizer, which ends with the final weights."""

    def only_outermost(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        if _depth(optimizer) < 2:
            hook(optimizer, args, kwargs)

    return only_outermost


def _depth(optimizer: torch.optim.Optimizer) -> int:
    """Return the number of steps of ``optimizer`` that are under way in this thread.

    It is read from the stack, as a counter would stay wrong after a step that raised an exception.
    """
    depth = 0
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "wrapper" and code.co_filename == _TORCH_FILE and frame.f_locals.get("self") is optimizer:
            depth += 1
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return depth
