"""Schedule-free AdamW, RAdam and SGD of the package schedulefree.

Source: Defazio et al. 2024, arXiv 2405.15682, and the package. The weights are y, between the iterate z that the
gradient moves and the average x. The step writes into the gradient, and Δy depends on z − y from before it, so Δw is
measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from client_sdk.optimizers.stability import averaging_gain
from client_sdk.optimizers.update_rule import SMALLEST_EPS, Columns, Family, Kind, UpdateRule, of, rate_of


def _read(kind: Kind, group: Mapping[str, Any]) -> UpdateRule:
    is_sgd = kind == "schedule_free_sgd"
    momentum, beta2 = (group["momentum"], 0.0) if is_sgd else group["betas"]
    lr, weight_decay, steps = rate_of(group), float(group.get("weight_decay", 0.0)), int(group["k"])
    factor = float(group.get("scheduled_lr", 0.0)) / lr if isinstance(lr, float) and lr else 1.0
    weight = max(steps, 1) ** float(group.get("r", 0.0)) * float(group["lr_max"]) ** float(group["weight_lr_power"])
    total = float(group["weight_sum"])
    return UpdateRule(
        kind=kind, lr=lr, is_exact=False, is_scaled_by_rate=False, decay=float(momentum), beta2=float(beta2),
        eps=float(group.get("eps", 0.0)), coupled=weight_decay if is_sgd else 0.0,
        decoupled=0.0 if is_sgd else weight_decay, rate_factor=factor, averaging=weight / total if total > 0 else 0.0,
        steps=steps, second=None if is_sgd else "exp_avg_sq",
    )  # fmt: skip


def _terms(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    one = t * 0.0 + 1.0
    columns = {"gain": one * averaging_gain(rule.decay, rule.averaging) * rule.rate_factor}
    if rule.kind == "schedule_free_sgd":
        return columns
    correction = 1.0 - rule.beta2**t
    eps = max(rule.eps, SMALLEST_EPS)
    rectified = one
    if rule.kind == "schedule_free_radam":
        longest = 2.0 / (1.0 - rule.beta2) - 1.0
        rectified = (longest - 2.0 * t * rule.beta2**t / correction > 4.0) * one
    return columns | {
        "root": rectified * correction**-0.5,
        "floor": rectified * eps + 1.0 - rectified,
        "threshold": eps * correction**0.5,
        "correction": correction,
    }


FAMILIES: Final = (
    Family(
        kind="schedule_free_adamw", classes=of("schedulefree", "AdamWScheduleFree"), wire="adam", terms=_terms,
        read=lambda optimizer, group: _read("schedule_free_adamw", group),
    ),
    Family(
        kind="schedule_free_radam", classes=of("schedulefree", "RAdamScheduleFree"), wire="adam", terms=_terms,
        read=lambda optimizer, group: _read("schedule_free_radam", group),
    ),
    Family(
        kind="schedule_free_sgd", classes=of("schedulefree", "SGDScheduleFree"), wire="sgd", terms=_terms,
        read=lambda optimizer, group: _read("schedule_free_sgd", group),
    ),
)  # fmt: skip
"""Families of this module."""
