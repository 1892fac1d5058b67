"""The memory of FSDP2 (`fully_shard`) between the passes of a training, set aside for passes that are not part of it.

A measurement may come at any place of the training loop: while gradients are accumulated without a reduction, or after
a forward pass whose backward pass is still to come. torch has public setters for this memory and no getters, so that
the attributes are read here, in one place; one that a version of torch does not have is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import Tensor

FLAGS: Final = {
    "reduce_grads": True,  # set_requires_gradient_sync
    "all_reduce_grads": True,  # set_requires_all_reduce
    "reshard_after_backward": True,
    "_partial_reduce_output": None,  # gradients that are summed over the shards and not yet over the replicas
}
"""Attributes of a parameter group, with their values for a pass whose gradients are whole."""
SHORT_FLOATS: Final = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """An attribute that will be given back."""

    owner: Any
    name: str
    value: Any


class FullySharded:
    """The FSDP2 modules of one model; a context in which they make passes of their own.

    On entry their gradients are set to be reduced, and gradients that wait for a reduction are taken away. On exit
    everything is as before, and gathered weights are freed.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Find the FSDP2 modules of ``model``."""
        self.modules: list[Any] = [module for module in model.modules() if is_fully_sharded(module)]
        """All FSDP2 modules."""
        self._kept: list[_Kept] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._passed: dict[int, int] = {}  # number of forward passes of each parameter group before the present one
        self._used: set[int] | None = None  # groups that took part in the last forward pass; None before one

    @property
    def roots(self) -> list[Any]:
        """FSDP2 modules that are within no other one."""
        inner = {id(module) for outer in self.modules for module in outer.modules() if module is not outer}
        return [module for module in self.modules if id(module) not in inner]

    @property
    def is_coarse(self) -> bool:
        """Whether weights or gradients pass through 16 bits."""
        policies = [getattr(group, "mp_policy", None) for group in self._groups()]
        types = [getattr(policy, name, None) for policy in policies for name in ("param_dtype", "reduce_dtype")]
        return any(dtype in SHORT_FLOATS for dtype in types)

    @property
    def scale(self) -> float | None:
        """Factor from the mean gradient of all ranks to the one that the optimizer receives; None if it differs.

        It is 1 unless `set_gradient_divide_factor` was called.
        """
        factors = {_scale_of(group) for group in self._groups()}
        return factors.pop() if len(factors) == 1 else None if factors else 1.0

    def __enter__(self) -> Self:
        self._kept, self._lists = [], []
        for group in self._groups():
            for name, value in FLAGS.items():
                self._set_aside(group, name, value)
            self._set_aside(group, "_training_state")
            self._set_aside_list(getattr(group, "_post_forward_indices", None))
            for parameter in group.fsdp_params:
                self._set_aside(parameter, "unsharded_accumulated_grad", None)
                unsharded = getattr(parameter, "_unsharded_param", None)
                if isinstance(unsharded, Tensor) and unsharded.grad is not None:
                    self._set_aside(unsharded, "grad", None)
        for state in self._states():
            self._set_aside(state, "_training_state")
            self._set_aside(state._state_ctx, "is_last_backward", True)
            self._set_aside(state._state_ctx, "iter_forward_root")
            self._set_aside(state._state_ctx, "post_backward_final_callback_queued")
            self._set_aside_list(getattr(state._comm_ctx, "post_forward_order", None))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._reset()
        for kept in reversed(self._kept):
            setattr(kept.owner, kept.name, kept.value)
        for present, before in self._lists:
            present[:] = before
        for module in self.modules:
            module.reshard()
        self._kept, self._lists = [], []

    def begin_pass(self) -> None:
        """Note that a forward pass begins."""
        self._passed = {id(group): _passes_of(group) for group in self._groups()}

    def end_pass(self) -> None:
        """Note that a forward pass has come to its end."""
        self._used = {id(group) for group in self._groups() if _passes_of(group) > self._passed.get(id(group), 0)}

    def complete_pass(self) -> None:
        """Gather what a forward pass that has raised would still have gathered, so that no other rank waits for it.

        The groups that are left are those of the last complete pass, or all before one, in the order of the modules.
        """
        for module in self.modules:
            groups = list(_groups_of(module._get_fsdp_state()))
            is_left = any(
                (self._used is None or id(group) in self._used)
                and _passes_of(group) == self._passed.get(id(group), 0)
                and group._training_state.name != "FORWARD"
                for group in groups
            )
            if is_left:
                module.unshard()
                module.reshard()

    def _reset(self) -> None:
        """End passes that were not completed."""
        for root in self.roots:
            if hasattr(root, "reset_iter_state"):  # torch ≥ 2.13
                root.reset_iter_state()

    def _set_aside(self, owner: Any, name: str, *value: Any) -> None:
        if hasattr(owner, name) and not any(kept.owner is owner and kept.name == name for kept in self._kept):
            self._kept.append(_Kept(owner=owner, name=name, value=getattr(owner, name)))
            for each in value:
                setattr(owner, name, each)

    def _set_aside_list(self, present: list[Any] | None) -> None:
        if present is not None and not any(known is present for known, _ in self._lists):
            self._lists.append((present, list(present)))

    def _states(self) -> Iterator[Any]:
        seen: set[int] = set()
        for module in self.modules:
            state = module._get_fsdp_state()
            if id(state) not in seen:
                seen.add(id(state))
                yield state

    def _groups(self) -> Iterator[Any]:
        for state in self._states():
            yield from _groups_of(state)


def is_fully_sharded(module: torch.nn.Module) -> bool:
    """Return whether `fully_shard` was applied to ``module``."""
    return hasattr(module, "_get_fsdp_state")


def _groups_of(state: Any) -> Iterator[Any]:
    groups = getattr(state, "_fsdp_param_groups", None)
    groups = [state._fsdp_param_group] if groups is None else groups
    yield from (group for group in groups if group is not None)


def _passes_of(group: Any) -> int:
    """Return the number of forward passes whose backward pass is still to come."""
    return len(group._post_forward_indices)


def _scale_of(group: Any) -> float:
    factor = getattr(group, "gradient_divide_factor", None)
    if factor is None:
        return 1.0
    mesh = group.mesh_info
    ranks = getattr(mesh, "shard_mesh_size", 1) * getattr(mesh, "replicate_mesh_size", 1)
    return float(ranks / factor)
