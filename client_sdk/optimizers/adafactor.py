"""Adafactor of torch.optim and of Transformers, whose second moment of a matrix is kept as a row and a column.

Source: Shazeer & Stern 2018, arXiv 1804.04235, and the two implementations. Update clipping and relative steps make Δw
a function of the whole tensor, so it is measured; the second moment is put together again by `moments.second_moment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from client_sdk.optimizers.update_rule import SMALLEST_EPS, Columns, Family, UpdateRule, of, rate_of

_FLOAT32_EPS: Final = float(torch.finfo(torch.float32).eps)


def _read_torch(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    eps = group["eps"][0]
    return UpdateRule(
        kind="adafactor", lr=rate_of(group), is_exact=False, is_scaled_by_rate=False,
        sign=-1 if group.get("maximize") else 1, eps=_FLOAT32_EPS if eps is None else float(eps),
        decoupled=float(group.get("weight_decay", 0.0)), second="variance",
    )  # fmt: skip


def _read_transformers(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    return UpdateRule(
        kind="transformers_adafactor", lr=rate_of(group), is_exact=False, is_scaled_by_rate=False,
        eps=float(group["eps"][0]) ** 0.5, decoupled=float(group.get("weight_decay", 0.0)), second="exp_avg_sq",
    )  # fmt: skip


def _terms(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    # The decay of v grows with t from zero, so v needs no correction for its start.
    return {"threshold": t * 0.0 + max(rule.eps, SMALLEST_EPS)}


FAMILIES: Final = (
    Family(
        kind="adafactor", classes=of("torch", "Adafactor"), wire="other", read=_read_torch, terms=_terms,
        has_limit=False,
    ),
    Family(
        kind="transformers_adafactor", classes=of("transformers", "Adafactor"), wire="other", read=_read_transformers,
        terms=_terms, has_limit=False,
    ),
)  # fmt: skip
"""Families of this module."""
