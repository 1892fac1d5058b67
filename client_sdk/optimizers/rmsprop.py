"""RMSprop, as torch.optim.RMSprop computes it. With `centered` only its v is used, and Δw is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

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


FAMILIES: Final = (Family(kind="rmsprop", classes=of("torch", "RMSprop"), wire="rmsprop", read=_read, terms=_terms),)
"""Families of this module."""
