"""Optimizers that hold another optimizer, and which of the two is watched.

A wrapper is looked through only if it is known to pass the inner optimizer's update to the weights unchanged. Of any
other wrapper (Lookahead, averages of weights, changed gradients) the step as a whole is watched, as an optimizer of an
unknown family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

_TRANSPARENT: Final = {
    ("accelerate", "AcceleratedOptimizer"): "optimizer",
    ("lightning", "LightningOptimizer"): "_optimizer",
    ("pytorch_lightning", "LightningOptimizer"): "_optimizer",
    ("", "SAM"): "base_optimizer",
    ("pytorch_optimizer", "GSAM"): "base_optimizer",
    ("pytorch_optimizer", "WSAM"): "base_optimizer",
}
"""Package and class of wrappers that are looked through, with the attribute that holds the inner optimizer.

SAM moves the weights away and back before its inner step, which therefore is the whole movement. A package "" stands
for any.
"""
_INNER: Final = ("optimizer", "base_optimizer", "inner_optimizer", "_optimizer", "optim", "base")


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The optimizer whose steps are watched."""

    optimizer: torch.optim.Optimizer
    """Optimizer that has the hooks, the parameter groups and the state."""
    wrapper: str | None = None
    """Class name of a wrapper around it whose effect on the weights is not seen; Δw is then unknown."""


def watched_optimizer(optimizer: torch.optim.Optimizer) -> Watched:
    """Return what is watched of ``optimizer``: itself, or the optimizer inside of it.

    Transparent wrappers are looked through. A wrapper that has no hooks, because it does not run the initialisation of
    torch.optim.Optimizer, is watched at its inner optimizer, and what it does to the weights is not seen.
    """
    while (inner := _transparent_inner(optimizer)) is not None:
        optimizer = inner
    wrapper: str | None = None
    while not _has_hooks(optimizer):
        inner = inner_optimizer(optimizer)
        if inner is None:
            break
        wrapper = wrapper or type(optimizer).__name__
        optimizer = inner
    return Watched(optimizer=optimizer, wrapper=wrapper)


def inner_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """Return the optimizer that ``optimizer`` holds, or None if it holds none."""
    for name in _INNER:
        inner = vars(optimizer).get(name)
        if isinstance(inner, torch.optim.Optimizer) and inner is not optimizer:
            return inner
    return None


def _transparent_inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    for parent in type(optimizer).__mro__:
        package = parent.__module__.partition(".")[0]
        name = _TRANSPARENT.get((package, parent.__name__)) or _TRANSPARENT.get(("", parent.__name__))
        inner = None if name is None else vars(optimizer).get(name)
        if isinstance(inner, torch.optim.Optimizer):
            return inner
    return None


def _has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    return hasattr(optimizer, "_optimizer_step_post_hooks") and hasattr(type(optimizer).step, "hooked")
