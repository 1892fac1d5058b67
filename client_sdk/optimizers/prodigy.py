"""Prodigy, an Adam whose learning rate is multiplied by an estimate d of the distance to the solution.

Source: Mishchenko & Defazio 2024, arXiv 2306.06101, and the package prodigyopt. Its moments hold d·g and d²·g², so
v̂ = v/d² is comparable with g² once d has stopped growing. The step uses the d from before it, so Δw is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from client_sdk.optimizers.update_rule import SMALLEST_EPS, Columns, Family, UpdateRule, is_decoupled, of, rate_of


def _read(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    weight_decay = float(group.get("weight_decay", 0.0))
    return UpdateRule(
        kind="prodigy", lr=rate_of(group), is_exact=False, is_scaled_by_rate=False, decay=beta1, intake=1.0 - beta1,
        beta2=beta2, eps=float(group["eps"]), coupled=0.0 if is_decoupled(group) else weight_decay,
        decoupled=weight_decay if is_decoupled(group) else 0.0, rate_factor=float(group["d"]),
        is_corrected=bool(group.get("use_bias_correction")), steps=int(group["k"]), second="exp_avg_sq",
    )  # fmt: skip


def _terms(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    one = t * 0.0 + 1.0
    d, eps = rule.rate_factor, max(rule.eps, SMALLEST_EPS)
    warm, correction = (1.0 - rule.decay**t, 1.0 - rule.beta2**t) if rule.is_corrected else (one, one)
    # Δw = −η·d·(√correction/warm)·m/(√v + d·ε), with m = decay·m + intake·d·g
    return {
        "root": one,
        "floor": one * d * eps,
        "threshold": one * d * eps,
        "correction": correction * d**2,
        "gain": d**2 * correction**0.5 / warm * (rule.intake / (1.0 + rule.decay)),
    }


FAMILIES: Final = (Family(kind="prodigy", classes=of("prodigyopt", "Prodigy"), wire="adam", read=_read, terms=_terms),)
"""Families of this module."""
