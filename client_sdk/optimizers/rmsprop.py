"""RMSprop, as torch.optim.RMSprop computes it.

With `centered` the update is divided by the deviation √(v − mean²) of the gradient. The statistics then use its v
alone, Δw is measured, and the stability limit is that of the deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.optimizers.update_rule import SMALLEST_EPS, Columns, Family, UpdateRule, of, rate_of


def _read(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    momentum = float(group["momentum"])
    return UpdateRule(
        kind="rmsprop", lr=rate_of(group), is_exact=not group["centered"], sign=-1 if group.get("maximize") else 1,
        coupled=float(group.get("weight_decay", 0.0)), decay=momentum, beta2=float(group["alpha"]),
        eps=float(group["eps"]), second="square_avg", divided=momentum > 0,
        first="momentum_buffer" if momentum > 0 else None,
    )  # fmt: skip


def _terms(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    zero = t * 0.0
    one = zero + 1.0
    eps = max(rule.eps, SMALLEST_EPS)
    direct, momentum = (one, zero) if rule.first is None else (zero, one)
    return {"direct": direct, "momentum": momentum, "root": one, "floor": one * eps, "threshold": one * eps}


def _diagonal(rule: UpdateRule, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor) -> Tensor | None:
    if not group["centered"]:
        return None
    variance = torch.addcmul(state["square_avg"], state["grad_avg"], state["grad_avg"], value=-1.0).clamp(min=0.0)
    return 1.0 / (variance.sqrt().add_(max(rule.eps, SMALLEST_EPS))).reshape(-1)


FAMILIES: Final = (
    Family(
        kind="rmsprop", classes=of("torch", "RMSprop"), wire="rmsprop", read=_read, terms=_terms, diagonal=_diagonal
    ),
)
"""Families of this module."""
