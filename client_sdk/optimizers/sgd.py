"""SGD with or without momentum, as torch.optim.SGD computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from client_sdk.optimizers.update_rule import Columns, Family, UpdateRule, of, rate_of


def _read(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    momentum = float(group["momentum"])
    return UpdateRule(
        kind="sgd", lr=rate_of(group), sign=-1 if group.get("maximize") else 1,
        coupled=float(group.get("weight_decay", 0.0)), decay=momentum, squared=False,
        intake=1.0 - float(group["dampening"]), nesterov=bool(group["nesterov"]) and momentum != 0,
        first="momentum_buffer" if momentum else None,
    )  # fmt: skip


def _terms(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    zero = t * 0.0
    one = zero + 1.0
    return {
        "direct": one if rule.first is None or rule.nesterov else zero,
        "momentum": zero if rule.first is None else one * rule.decay if rule.nesterov else one,
    }


FAMILIES: Final = (Family(kind="sgd", classes=of("torch", "SGD"), wire="sgd", read=_read, terms=_terms),)
"""Families of this module."""
