"""Lion, whose update is the sign of an interpolated momentum; it has no second moment.

Source: Chen et al. 2023, arXiv 2302.06675. Every implementation keeps m = β2·m + (1 − β2)·g as ``exp_avg``, those of
bitsandbytes as ``state1``. A sign has no stability limit of the form 2/η.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from client_sdk.optimizers.update_rule import Columns, Family, UpdateRule, of, rate_of


def _read(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    beta2 = float(group["betas"][1])
    weight_decay = float(group.get("weight_decay", 0.0))
    is_coupled = group.get("weight_decouple") is False
    is_maximized = bool(group.get("maximize") or getattr(optimizer, "maximize", False))
    is_quantised = type(optimizer).__module__.partition(".")[0] == "bitsandbytes"
    return UpdateRule(
        kind="lion", lr=rate_of(group), is_exact=False, sign=-1 if is_maximized else 1, decay=beta2,
        intake=1.0 - beta2, coupled=weight_decay if is_coupled else 0.0,
        decoupled=0.0 if is_coupled or group.get("fixed_decay") else weight_decay,
        is_scaled_by_rate=not (group.get("fixed_decay") and weight_decay), squared=False,
        steps=group.get("step"), first="state1" if is_quantised else "exp_avg",
    )  # fmt: skip


def _terms(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    return {"first_step": (t == 1.0) * (t * 0.0 + 1.0)}  # t stays 0 where steps are not counted


FAMILIES: Final = (
    Family(
        kind="lion", wire="other", read=_read, terms=_terms, has_limit=False,
        classes=of("", "Lion") | of("bitsandbytes", "Lion8bit", "Lion32bit", "PagedLion", "PagedLion8bit",
                                    "PagedLion32bit"),
    ),
)  # fmt: skip
"""Families of this module."""
