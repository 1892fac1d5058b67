"""Optimizers that treat a parameter as a matrix: Muon and SOAP.

Sources: Jordan et al. 2024 (Muon) and torch.optim.Muon; Vyas et al. 2024, arXiv 2409.11321 (SOAP), and the
implementation of pytorch_optimizer. Their Δw mixes the coordinates of a matrix, so it is measured. Muon has no second
moment. SOAP's is kept in the eigenbasis of its preconditioner, in which Σ v is comparable with Σ g² but no single
coordinate is. Neither has a stability limit of the form 2/η. Shampoo keeps no moments of single coordinates at all and
needs no entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from client_sdk.optimizers.update_rule import SMALLEST_EPS, Columns, Family, UpdateRule, no_terms, of, rate_of


def _read_muon(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    # Only torch's class is known to keep m = μ·m + (1 − μ)·g; others add the whole gradient or hold AdamW groups too.
    momentum = float(group.get("momentum") or 0.0)
    is_torch = type(optimizer).__module__.partition(".")[0] == "torch"
    return UpdateRule(
        kind="muon", lr=rate_of(group), is_exact=False, is_scaled_by_rate=is_torch, decay=momentum,
        intake=1.0 - momentum, decoupled=float(group.get("weight_decay", 0.0)), squared=False,
        first="momentum_buffer" if is_torch else None,
    )  # fmt: skip


def _read_soap(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    beta1, beta2 = (float(beta) for beta in group["betas"][:2])
    is_known = type(optimizer).__module__.partition(".")[0] == "pytorch_optimizer"
    # pytorch_optimizer counts the step that only sets up the preconditioner, and its m is in the gradient's own basis.
    steps = group.get("step")
    return UpdateRule(
        kind="soap", lr=rate_of(group), is_exact=False, is_rotated=True, is_scaled_by_rate=is_known,
        sign=-1 if getattr(optimizer, "maximize", False) else 1, decay=beta1, intake=1.0 - beta1, beta2=beta2,
        eps=float(group["eps"]), decoupled=float(group.get("weight_decay", 0.0)),
        is_corrected=bool(group.get("correct_bias", True)), steps=steps - 1 if is_known and steps else None,
        first="exp_avg" if is_known else None, second="exp_avg_sq",
    )  # fmt: skip


def _soap(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    one = t * 0.0 + 1.0
    correction = 1.0 - rule.beta2**t if rule.is_corrected else one
    return {
        "threshold": max(rule.eps, SMALLEST_EPS) * one,  # ε is added to √v without correction
        "correction": correction,
        "first_step": (t <= 1.0) * one,
    }


FAMILIES: Final = (
    Family(kind="muon", classes=of("", "Muon"), wire="other", read=_read_muon, terms=no_terms, has_limit=False),
    Family(kind="soap", classes=of("", "SOAP"), wire="other", read=_read_soap, terms=_soap, has_limit=False),
)
"""Families of this module."""
