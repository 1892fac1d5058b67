"""Properties of the autograd graph of a loss that decide how it can be differentiated.

Owns the search of the graph and the observation of custom `autograd.Function`s, whose second derivative torch may
ignore without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Properties of the graph of a loss."""

    recomputes_by_backward: bool
    """Whether a part is computed again inside `backward()`, as reentrant activation checkpointing does it.

    `torch.autograd.grad` does not reach the parameters in it, and it has no second derivative.
    """
    is_compiled: bool
    """Whether a part is a compiled graph, which has no second derivative."""
    coarse: torch.dtype | None
    """The type of 16 bits through which gradients pass, bfloat16 if both are there; None without one."""
    custom: tuple[Any, ...]
    """Nodes of custom `autograd.Function`s."""
    leaves: tuple[Tensor, ...]
    """Tensors whose `.grad` a call of `backward()` would change."""

    @classmethod
    def read(cls, loss: Tensor) -> Graph:
        """Search the graph of ``loss``, at some microseconds for each operation."""
        nodes = list(_nodes([loss]))
        custom: tuple[Any, ...] = tuple(node for node in nodes if isinstance(node, BackwardCFunction))
        names = [node.name().lower() for node in custom]
        types = {dtype for node in nodes for dtype in _coarse_types(node)}
        return cls(
            recomputes_by_backward=any("checkpoint" in name for name in names),
            is_compiled=any("compiledfunction" in name for name in names),
            coarse=torch.bfloat16 if torch.bfloat16 in types else next(iter(types), None),
            custom=custom,
            leaves=tuple(leaf for node in nodes if isinstance(leaf := getattr(node, "variable", None), Tensor)),
        )


class CustomFunctions:
    """Observation of custom `autograd.Function`s while a gradient with a graph is computed.

    Enter it around `torch.autograd.grad(…, create_graph=True)`.
    """

    def __init__(self, nodes: Sequence[Any]) -> None:
        self._nodes = nodes
        self.cut: list[str] = []
        """Names of functions whose backward pass is not differentiable: the gradient that they return is a constant,
        although it was computed from one that depends on the parameters.
        """
        self.constant: list[str] = []
        """Names of functions that return a constant gradient for a constant one: they are linear, or not
        differentiable.
        """

    def __enter__(self) -> CustomFunctions:
        self._handles = [node.register_hook(self._observer(node)) for node in self._nodes]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _observer(self, node: Any) -> Any:
        name = node.name().removesuffix("Backward")

        def observe(grad_inputs: Sequence[Tensor | None], grad_outputs: Sequence[Tensor | None]) -> None:
            returned = [grad for grad in grad_inputs if grad is not None]
            if not returned or any(grad.requires_grad for grad in returned):
                return
            depends = any(grad is not None and grad.requires_grad for grad in grad_outputs)
            (self.cut if depends else self.constant).append(name)

        return observe


def has_dead_end(tensors: Sequence[Tensor]) -> bool:
    """Return whether the graph of ``tensors`` has a node that stands for an error.

    Such a node raises only when it is reached. `autograd.grad` prunes it, and the product would silently lack a part.
    """
    return any(node.name() == "torch::autograd::Error" for node in _nodes(tensors))


def _nodes(tensors: Sequence[Tensor]) -> Iterator[Any]:
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]


def _coarse_types(node: Any) -> set[torch.dtype]:
    metadata = getattr(node, "_input_metadata", ())  # of the gradients that the node receives; torch ≥ 2.1
    return {each.dtype for each in metadata if getattr(each, "dtype", None) in (torch.float16, torch.bfloat16)}
