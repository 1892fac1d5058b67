"""The update rules of torch's optimizers: the update, the second moment and the stability factor as numbers.

Owns the algebra of each optimizer family, without measuring or scheduling. Every family is brought into one form, so
that statistics and curvature need no special cases::

    u  = (direct·g + momentum·m) / (root·√v + floor)          the update of each coordinate
    Δw = −lr·u                                                (after −lr·decoupled·w)
    m  = decay·m + intake·g,   v̂ = v / correction

with g the gradient as the optimizer uses it (after `maximize` and coupled weight decay). Sources: torch.optim's own
reference implementations; Kingma & Ba 2015 (Adam), Loshchilov & Hutter 2019 (AdamW), Dozat 2016 (NAdam), Liu et al.
2020 (RAdam), Reddi et al. 2018 (AMSGrad).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_sdk import protocol

Kind = Literal["adam", "nadam", "radam", "adamax", "rmsprop", "sgd", "other"]
Numbers = TypeVar("Numbers", NDArray[np.float64], Tensor)

_KINDS: Final[tuple[tuple[type[torch.optim.Optimizer], Kind], ...]] = (
    (torch.optim.Adam, "adam"),
    (torch.optim.AdamW, "adam"),
    (torch.optim.NAdam, "nadam"),
    (torch.optim.RAdam, "radam"),
    (torch.optim.Adamax, "adamax"),
    (torch.optim.RMSprop, "rmsprop"),
    (torch.optim.SGD, "sgd"),
)
_FAMILIES: Final[dict[Kind, Literal["adam", "sgd", "rmsprop", "other"]]] = {
    "adam": "adam", "nadam": "adam", "radam": "adam", "adamax": "adam", "rmsprop": "rmsprop", "sgd": "sgd",
    "other": "other",
}  # fmt: skip

TERMS: Final = (
    "direct", "momentum", "root", "floor", "threshold", "lr", "coupled",
    "correction", "decoupled", "gain", "first_step",
)  # fmt: skip
"""Columns of `term_table`.

√v below `threshold` means √v̂ < ε. `gain` is the `oscillation_gain`. `first_step` is 1 if this was the tensor's first
step, so that there is no earlier momentum. The other columns are the symbols of the formulas above.
"""
TERM: Final = {name: position for position, name in enumerate(TERMS)}
"""Position of each column of `term_table`."""
ELEMENTWISE_TERMS: Final = TERMS[:7]
"""Leading columns of `term_table`, which the formulas over coordinates need."""
_SMALLEST_EPS: Final = 1e-35  # replaces ε = 0, so that a coordinate without any gradient gives 0 instead of 0/0


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """Update rule of one parameter group at this step, as host numbers except for a learning rate kept on a device."""

    kind: Kind
    """Kind of the optimizer."""
    lr: float | Tensor
    """Learning rate η."""
    sign: int = 1
    """Sign of the gradient, −1 for `maximize`."""
    decay: float = 0.0
    """Decay of the first moment: β1, or the momentum of SGD and RMSprop."""
    intake: float = 1.0
    """Share of a new gradient in m: 1 − β1, or 1 − dampening."""
    beta2: float = 0.0
    """Decay of the second moment."""
    eps: float = 0.0
    """Constant ε in the denominator of the update."""
    coupled: float = 0.0
    """L2 weight decay, which is added to the gradient."""
    decoupled: float = 0.0
    """Decoupled weight decay, as in AdamW."""
    nesterov: bool = False
    """Whether SGD uses Nesterov momentum."""
    momentum_decay: float = 0.0
    """Momentum decay of NAdam."""
    first: str | None = None
    """Key of m in the optimizer's state."""
    second: str | None = None
    """Key of v in the optimizer's state."""
    squared: bool = True
    """Whether v is a mean of squares; False for Adamax, whose v is a maximum of |g|."""
    divided: bool = False
    """Whether m already holds preconditioned gradients, as in RMSprop with momentum, so that u = m."""

    @property
    def uses_gradient(self) -> bool:
        """Whether u has a part of the gradient itself in addition to momentum."""
        return self.kind == "nadam" or self.nesterov or (self.first is None and self.kind in ("sgd", "rmsprop"))


def kind_of(optimizer: torch.optim.Optimizer) -> Kind:
    """Return the kind whose update rule is exact for ``optimizer``, or "other" if its rule is not known.

    A subclass counts as its parent only if it inherits `step`. RMSprop with `centered` is "other", and so are
    optimizers that hold β in device tensors, as reading those would synchronise the device.
    """
    step = inspect.unwrap(type(optimizer).step)
    kind: Kind = "other"
    for parent, candidate in _KINDS:
        if isinstance(optimizer, parent) and step is inspect.unwrap(parent.step):
            kind = candidate
    for group in optimizer.param_groups:
        if kind == "rmsprop" and group["centered"]:
            return "other"
        if any(_is_on_device(value) for name, value in group.items() if name not in ("params", "lr")):
            return "other"
        if any(_is_on_device(beta) for beta in group.get("betas", ())):
            return "other"
    return kind


def read_update_rule(kind: Kind, group: Mapping[str, Any]) -> UpdateRule:
    """Return the current update rule of a parameter group. Never synchronises a device."""
    lr = group.get("lr", float("nan"))
    lr = lr if _is_on_device(lr) else float(lr)
    if kind == "other":
        return UpdateRule(kind=kind, lr=lr)
    sign = -1 if group.get("maximize") else 1
    weight_decay = float(group.get("weight_decay", 0.0))
    if kind == "sgd":
        momentum = float(group["momentum"])
        return UpdateRule(
            kind=kind, lr=lr, sign=sign, coupled=weight_decay, decay=momentum, squared=False,
            intake=1.0 - float(group["dampening"]), nesterov=bool(group["nesterov"]) and momentum != 0,
            first="momentum_buffer" if momentum else None,
        )  # fmt: skip
    if kind == "rmsprop":
        momentum = float(group["momentum"])
        return UpdateRule(
            kind=kind, lr=lr, sign=sign, coupled=weight_decay, decay=momentum, beta2=float(group["alpha"]),
            eps=float(group["eps"]), second="square_avg", divided=momentum > 0,
            first="momentum_buffer" if momentum > 0 else None,
        )  # fmt: skip
    beta1, beta2 = (float(beta) for beta in group["betas"])
    is_decoupled = bool(group.get("decoupled_weight_decay"))
    second = {"adamax": "exp_inf"}.get(kind, "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq")
    return UpdateRule(
        kind=kind, lr=lr, sign=sign, decay=beta1, intake=1.0 - beta1, beta2=beta2, eps=float(group["eps"]),
        coupled=0.0 if is_decoupled else weight_decay, decoupled=weight_decay if is_decoupled else 0.0,
        momentum_decay=float(group.get("momentum_decay", 0.0)), first="exp_avg", second=second,
        squared=kind != "adamax",
    )  # fmt: skip


def describe(optimizer: torch.optim.Optimizer) -> protocol.Optimizer:
    """Return the description of ``optimizer`` for the server, taken from the group with the largest learning rate."""
    kind = kind_of(optimizer)
    rules = [read_update_rule(kind, group) for group in optimizer.param_groups]
    rates = [float(rule.lr) for rule in rules]  # may read a device, which is acceptable once, in `watch`
    leading = rules[int(np.nanargmax(rates))] if not np.isnan(rates).all() else rules[0]
    known = kind != "other"
    return protocol.Optimizer(
        name=type(optimizer).__name__,
        family=_FAMILIES[kind],
        lr=float(np.nanmax([0.0, *rates])),
        beta1=leading.decay if known else None,
        beta2=leading.beta2 if leading.second is not None else None,
        eps=leading.eps if leading.second is not None else None,
        weight_decay=leading.coupled or leading.decoupled,
    )


def read_steps(states: Sequence[Mapping[str, Any]]) -> NDArray[np.float64] | Tensor:
    """Return the step counters t of P tensors, [P], on the host or on the device where the optimizer keeps them.

    They are zeros if the optimizer counts no steps (SGD).
    """
    steps = [state.get("step", 0.0) for state in states]
    if steps and all(isinstance(step, Tensor) for step in steps):
        stacked = torch.stack([step.detach().reshape(()) for step in steps])
        return stacked if _is_on_device(stacked) else stacked.numpy().astype(np.float64)
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
        columns = _terms(rule, steps, mu_product)
        return torch.stack([columns[name] for name in TERMS], dim=1)
    with np.errstate(all="ignore"):  # t = 0 if GradScaler skipped the very first step
        columns_on_host = _terms(rule, steps, mu_product)
    return np.stack([columns_on_host[name] for name in TERMS], axis=1)


def _terms(rule: UpdateRule, t: Numbers, mu_product: Numbers | None) -> dict[str, Numbers]:
    """Return the columns of `TERMS`, [P] each, with operators that NumPy and torch share."""
    zero = t * 0.0
    one = zero + 1.0
    eps = max(rule.eps, _SMALLEST_EPS)
    direct, momentum, root, floor, threshold, correction = zero, one, zero, one, zero, one
    if rule.kind == "sgd":
        direct = one if rule.first is None or rule.nesterov else zero
        momentum = zero if rule.first is None else one * rule.decay if rule.nesterov else one
    elif rule.kind == "rmsprop":
        direct, momentum = (one, zero) if rule.first is None else (zero, one)
        root, floor, threshold = one, one * eps, one * eps
    elif rule.kind != "other":
        warm = 1.0 - rule.decay**t
        correction = 1.0 - rule.beta2**t
        momentum = 1.0 / warm
        root, floor, threshold = correction**-0.5, one * eps, eps * correction**0.5
        if rule.kind == "nadam":
            assert mu_product is not None
            mu = rule.decay * (1.0 - 0.5 * 0.96 ** (t * rule.momentum_decay))
            mu_next = rule.decay * (1.0 - 0.5 * 0.96 ** ((t + 1.0) * rule.momentum_decay))
            direct = (1.0 - mu) / (1.0 - mu_product)
            momentum = mu_next / (1.0 - mu_product * mu_next)
        elif rule.kind == "radam":
            longest = 2.0 / (1.0 - rule.beta2) - 1.0
            length = longest - 2.0 * t * rule.beta2**t / correction
            rectified = (length > 5.0) * one
            square = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
            rectifier = abs(square) ** 0.5 * correction**0.5
            momentum = momentum * (rectified * rectifier + 1.0 - rectified)
            root, floor, threshold = rectified, rectified * eps + 1.0 - rectified, one * eps
        elif rule.kind == "adamax":
            root, floor, threshold, correction = one, one * _SMALLEST_EPS, zero, one  # v holds ε already
    return {
        "direct": direct,
        "momentum": momentum,
        "root": root,
        "floor": floor,
        "threshold": threshold,
        "correction": correction,
        "lr": one * rule.lr,
        "coupled": one * rule.coupled,
        "decoupled": one * rule.decoupled,
        "gain": oscillation_gain(direct, momentum, rule.intake, rule.decay),
        "first_step": (t <= 1.0) * one if rule.kind in ("adam", "nadam", "radam", "adamax") else zero,
    }


def oscillation_gain(direct: Numbers, momentum: Numbers, intake: float, decay: float) -> Numbers:
    """Return the response of the update to a gradient that changes sign every step, which is the factor of Ĥ.

    The first instability of gradient descent has period two. The transfer function of m = decay·m + intake·g at z = −1
    is intake/(1 + decay), so "λ(D·H) · gain < 2/η" is the limit of every family here, with D = 1/(root·√v + floor). It
    gives the published limits: SGD 1; heavy ball 1/(1+μ); Nesterov (1+2μ)/(1+μ) (Cohen et al. 2021, arXiv 2103.00065);
    EMA momentum (1−β1)/(1+β1) (Cohen et al. 2022, arXiv 2207.14484); Adam with bias correction
    (1/(1−β1ᵗ))·(1−β1)/(1+β1) (Bai et al. 2026).
    """
    return direct + momentum * (intake / (1.0 + decay))


def stability_limit(lr: float, decoupled_weight_decay: float = 0.0) -> float:
    """Return the limit of a stable λ_max(Ĥ): 2/η, minus γ for decoupled weight decay; infinite at η = 0.

    >>> stability_limit(0.01)
    200.0
    >>> stability_limit(0.001, decoupled_weight_decay=0.1)
    1999.9
    """
    return 2.0 / lr - decoupled_weight_decay if lr > 0 else float("inf")


def _is_on_device(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
