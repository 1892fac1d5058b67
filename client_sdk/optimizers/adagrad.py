"""Adagrad and Adadelta, as torch.optim computes them.

Sources: Duchi et al. 2011 (Adagrad), Zeiler 2012 (Adadelta), and the reference implementations of torch.optim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.optimizers.update_rule import SMALLEST_EPS, Columns, Family, UpdateRule, of, rate_of


def _read_adagrad(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    return UpdateRule(
        kind="adagrad", lr=rate_of(group), sign=-1 if group.get("maximize") else 1, eps=float(group["eps"]),
        coupled=float(group.get("weight_decay", 0.0)), momentum_decay=float(group.get("lr_decay", 0.0)), second="sum",
    )  # fmt: skip


def _adagrad(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    # v is the sum of all squared gradients, so v̂ = v / t is their mean. The rate falls as η/(1 + (t − 1)·lr_decay).
    one = t * 0.0 + 1.0
    slowed = 1.0 + (t - 1.0) * rule.momentum_decay
    eps = max(rule.eps, SMALLEST_EPS)
    return {
        "direct": 1.0 / slowed,
        "momentum": t * 0.0,
        "root": one,
        "floor": one * eps,
        "threshold": one * eps,
        "correction": t,
    }


def _read_adadelta(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    # The update needs the accumulated updates from before the step, which are overwritten by it.
    return UpdateRule(
        kind="adadelta", lr=rate_of(group), is_exact=False, sign=-1 if group.get("maximize") else 1,
        eps=float(group["eps"]) ** 0.5, coupled=float(group.get("weight_decay", 0.0)), beta2=float(group["rho"]),
        second="square_avg",
    )  # fmt: skip


def _adadelta(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    # The denominator is √(v + ε), so √ε is what √v is compared with.
    one = t * 0.0 + 1.0
    return {"threshold": one * max(rule.eps, SMALLEST_EPS)}


def _adadelta_diagonal(
    rule: UpdateRule, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor
) -> Tensor:
    # The next step multiplies the gradient by the size of the updates so far, √(E[Δ²] + ε), over √(v + ε).
    eps = float(group["eps"])
    diagonal: Tensor = ((state["acc_delta"] + eps) / (state["square_avg"] + eps)).sqrt().reshape(-1)
    return diagonal


FAMILIES: Final = (
    Family(kind="adagrad", classes=of("torch", "Adagrad"), wire="other", read=_read_adagrad, terms=_adagrad),
    Family(
        kind="adadelta", classes=of("torch", "Adadelta"), wire="other", read=_read_adadelta, terms=_adadelta,
        diagonal=_adadelta_diagonal,
    ),
)  # fmt: skip
"""Families of this module."""
