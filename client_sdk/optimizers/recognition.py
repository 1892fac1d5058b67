"""The family of an optimizer, its current update rule, and the numbers of the rule for each tensor.

Optimizers are known by the names of their classes, so that no package besides torch is imported. A subclass counts as
its parent; whether the weights then move as the parent's rule says is checked at the weights
(`client_sdk.stats.movement`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_sdk import protocol
from client_sdk.optimizers import adafactor, adagrad, adam, lion, matrix, prodigy, rmsprop, schedule_free, sgd
from client_sdk.optimizers.stability import oscillation_gain
from client_sdk.optimizers.update_rule import (
    TERMS,
    Family,
    Kind,
    UpdateRule,
    is_on_device,
    no_terms,
    rate_of,
)
from client_sdk.optimizers.wrappers import Watched, inner_optimizer

_OTHER: Final = Family(
    kind="other",
    classes=frozenset(),
    wire="other",
    has_limit=False,
    terms=no_terms,
    read=lambda optimizer, group: UpdateRule(
        kind="other", lr=rate_of(group), is_exact=False, is_scaled_by_rate=False, squared=False
    ),
)
_FAMILIES: Final[dict[Kind, Family]] = {
    family.kind: family
    for family in (
        *adam.FAMILIES, *sgd.FAMILIES, *rmsprop.FAMILIES, *adagrad.FAMILIES, *adafactor.FAMILIES, *lion.FAMILIES,
        *matrix.FAMILIES, *schedule_free.FAMILIES, *prodigy.FAMILIES, _OTHER,
    )
}  # fmt: skip
_KINDS: Final = {name: family.kind for family in _FAMILIES.values() for name in family.classes}


def kind_of(optimizer: torch.optim.Optimizer) -> Kind:
    """Return the family that ``optimizer`` belongs to, or "other" if it is not known.

    A subclass belongs to the family of its nearest known parent. An optimizer that holds another optimizer is "other",
    and so are optimizers that keep β in device tensors, as reading those would synchronise the device, and those whose
    groups lack what the family needs.
    """
    kind: Kind = "other"
    for parent in type(optimizer).__mro__:
        package = parent.__module__.partition(".")[0]
        known = _KINDS.get((package, parent.__name__)) or _KINDS.get(("", parent.__name__))
        if known is not None:
            kind = known
            break
    if inner_optimizer(optimizer) is not None:
        return "other"
    try:
        for group in optimizer.param_groups:
            if any(is_on_device(value) for name, value in group.items() if name not in ("params", "lr", "step")):
                return "other"
            if any(is_on_device(beta) for beta in group.get("betas", ())):
                return "other"
            _FAMILIES[kind].read(optimizer, group)
    except (KeyError, TypeError, ValueError, IndexError):
        return "other"  # another class of the same name
    return kind


def has_limit(kind: Kind, optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the stability limit of ``optimizer``, which is of the given ``kind``, is known.

    It is not where the optimizer has no learning rate, such as Adafactor with relative steps.
    """
    rates = [read_update_rule(kind, optimizer, group).lr for group in optimizer.param_groups]
    return _FAMILIES[kind].has_limit and not any(isinstance(lr, float) and math.isnan(lr) for lr in rates)


def own_diagonal(
    rule: UpdateRule, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor
) -> Tensor | None:
    """Return the diagonal of a parameter's preconditioner D without the gain, [n], if it has a form of its own.

    None stands for the form 1/(root·√v + floor), which most families share.
    """
    diagonal = _FAMILIES[rule.kind].diagonal
    return None if diagonal is None else diagonal(rule, group, state, parameter)


def has_own_step(kind: Kind, optimizer: torch.optim.Optimizer) -> bool:
    """Return whether ``optimizer`` is of a subclass that does not take its `step` from the class of its ``kind``."""
    step = inspect.unwrap(type(optimizer).step)
    for parent in type(optimizer).__mro__:
        package = parent.__module__.partition(".")[0]
        if _KINDS.get((package, parent.__name__)) or _KINDS.get(("", parent.__name__)):
            return step is not inspect.unwrap(getattr(parent, "step", step))
    return kind != "other"


def what_is_missing(kind: Kind, watched: Watched) -> str | None:
    """Return a sentence about what cannot be measured of an optimizer of the given ``kind``, or None."""
    name = type(watched.optimizer).__name__
    if watched.wrapper is not None:
        return (
            f"{watched.wrapper} may change the weights outside of the steps of {name}, which are all that can be seen, "
            "so update_norm and what follows from it are not measured. Let it call torch.optim.Optimizer.__init__ to "
            "have its own steps measured"
        )
    if kind == "other":
        return (
            f"the update rule of {name} is not known: gradients, weights and their movement are measured, but no "
            "statistics of its second moment and no curvature. docs/explanation/science.md lists the optimizers that "
            "have them"
        )
    rules = [read_update_rule(kind, watched.optimizer, group) for group in watched.optimizer.param_groups]
    if not _FAMILIES[kind].has_limit and all(rule.second is None for rule in rules):
        return (
            f"{name} keeps no second moment and has no known stability limit: the statistics of v and curvature are "
            "not measured, everything else is"
        )
    return None


def read_update_rule(kind: Kind, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    """Return the current update rule of a parameter group of ``optimizer``. Never synchronises a device."""
    return _FAMILIES[kind].read(optimizer, group)


def describe(optimizer: torch.optim.Optimizer) -> protocol.Optimizer:
    """Return the description of ``optimizer`` for the server, taken from the group with the largest learning rate."""
    kind = kind_of(optimizer)
    rules = [read_update_rule(kind, optimizer, group) for group in optimizer.param_groups]
    rates = [float(rule.lr) for rule in rules]  # may read a device, which is acceptable once, in `watch`
    leading = rules[int(np.nanargmax(rates))] if not np.isnan(rates).all() else rules[0]
    has_v = leading.second is not None
    return protocol.Optimizer(
        name=type(optimizer).__name__,
        family=_FAMILIES[kind].wire,
        lr=float(np.nanmax([0.0, *rates])),
        beta1=leading.decay if kind != "other" else None,
        beta2=leading.beta2 if has_v else None,
        eps=leading.eps if has_v else None,
        weight_decay=leading.coupled or leading.decoupled,
    )


def read_steps(rule: UpdateRule, states: Sequence[Mapping[str, Any]]) -> NDArray[np.float64] | Tensor:
    """Return the step counters t of P tensors, [P], on the host or on the device where the optimizer keeps them.

    They are zeros if the optimizer counts no steps (SGD).
    """
    if rule.steps is not None:
        if is_on_device(rule.steps):
            assert isinstance(rule.steps, Tensor)
            return rule.steps.detach().reshape(1).expand(len(states))
        return np.full(len(states), float(rule.steps))
    steps = [state.get("step", 0.0) for state in states]
    if steps and all(isinstance(step, Tensor) for step in steps):
        stacked = torch.stack([step.detach().reshape(()) for step in steps])
        return stacked if is_on_device(stacked) else stacked.numpy().astype(np.float64)
    return np.array([float(step) for step in steps], np.float64)


def term_table(
    rule: UpdateRule, steps: NDArray[np.float64] | Tensor, states: Sequence[Mapping[str, Any]]
) -> NDArray[np.float64] | Tensor:
    """Return the `TERMS` of P tensors of one group, [P, len(TERMS)].

    They are on the host unless the step counters or the learning rate are kept on a device.
    """
    mu_product: Any = None
    if rule.kind == "nadam":
        mu_product = torch.stack([state["mu_product"].detach().reshape(()) for state in states])
        if not isinstance(steps, Tensor):
            mu_product = mu_product.numpy().astype(np.float64)
    if isinstance(rule.lr, Tensor) and not isinstance(steps, Tensor):
        steps = torch.tensor(steps, device=rule.lr.device, dtype=_widest(rule.lr.device))
        if mu_product is not None:
            mu_product = torch.tensor(mu_product, device=rule.lr.device, dtype=steps.dtype)
    if isinstance(steps, Tensor):
        steps = steps.to(_widest(steps.device))
        columns = _columns(rule, steps, mu_product)
        return torch.stack([columns[name] for name in TERMS], dim=1)
    with np.errstate(all="ignore"):  # t = 0 if GradScaler skipped the very first step
        columns_on_host = _columns(rule, steps, mu_product)
    return np.stack([columns_on_host[name] for name in TERMS], axis=1)


def _columns(rule: UpdateRule, t: Any, mu_product: Any) -> dict[str, Any]:
    """Return the columns of `TERMS`, [P] each; ``t`` and ``mu_product`` are arrays of NumPy or tensors, [P]."""
    zero = t * 0.0
    one = zero + 1.0
    columns = {
        "direct": zero, "momentum": one, "root": zero, "floor": one, "threshold": zero, "correction": one,
        "lr": one * rule.lr, "coupled": one * rule.coupled, "decoupled": one * rule.decoupled, "first_step": zero,
    }  # fmt: skip
    columns |= _FAMILIES[rule.kind].terms(rule, t, mu_product)
    if "gain" not in columns:
        columns["gain"] = oscillation_gain(columns["direct"], columns["momentum"], rule.intake, rule.decay)
    return columns


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
