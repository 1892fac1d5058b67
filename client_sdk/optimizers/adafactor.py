"""Adafactor of torch.optim and of Transformers, whose second moment of a matrix is kept as a row and a column.

Source: Shazeer & Stern 2018, arXiv 1804.04235, and the two implementations. Update clipping and relative steps make Δw
a function of the whole tensor, so it is measured; the second moment is put together again by `moments.second_moment`.

The stability limit is that of the update with v and the size of the weights held still: D = α/(η·√v), where α is the
rate after it has been scaled by the root mean square of the weights. Update clipping is left out: where it acts, the
step is shorter than D says, and the true limit higher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.optimizers.moments import dense, second_moment
from client_sdk.optimizers.update_rule import SMALLEST_EPS, Columns, Family, UpdateRule, of, rate_of


def _read_torch(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    eps = group["eps"][0]
    if eps is None:
        weights: list[Tensor] = group["params"]
        eps = torch.finfo(weights[0].dtype if weights else torch.float32).eps
    return UpdateRule(
        kind="adafactor", lr=rate_of(group), is_exact=False, is_scaled_by_rate=False,
        sign=-1 if group.get("maximize") else 1, eps=float(eps),
        decoupled=float(group.get("weight_decay", 0.0)), second="variance",
    )  # fmt: skip


def _read_transformers(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    beta1 = float(group.get("beta1") or 0.0)  # an average of updates, which is not comparable with the gradient
    return UpdateRule(
        kind="transformers_adafactor", lr=rate_of(group), is_exact=False, is_scaled_by_rate=False, decay=beta1,
        intake=1.0 - beta1, eps=float(group["eps"][0]) ** 0.5, decoupled=float(group.get("weight_decay", 0.0)),
        second="exp_avg_sq",
    )  # fmt: skip


def _terms(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    # The decay of v grows with t from zero, so v needs no correction for its start.
    return {"threshold": t * 0.0 + max(rule.eps, SMALLEST_EPS)}


def _torch_diagonal(
    rule: UpdateRule, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor
) -> Tensor | None:
    moment = second_moment(rule, state, parameter)
    if moment is None:
        return None
    # The rate is min(η, 1/√t), times the root mean square of the weights, which is at least the second ε.
    slowed = (torch.as_tensor(state["step"]).rsqrt() / rule.lr).clamp(max=1.0)
    return dense(moment).clamp(min=rule.eps**2).rsqrt() * (_size(parameter, float(group["eps"][1])) * slowed)


def _transformers_diagonal(
    rule: UpdateRule, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor
) -> Tensor | None:
    moment = second_moment(rule, state, parameter)
    if moment is None:
        return None
    inverse = dense(moment).rsqrt()
    return inverse * _size(parameter, float(group["eps"][1])) if group["scale_parameter"] else inverse


def _size(parameter: Tensor, smallest: float) -> Tensor:
    """Return the root mean square of the weights, 0-d, at least ``smallest``."""
    norm = torch.linalg.vector_norm(parameter.detach(), dtype=torch.promote_types(parameter.dtype, torch.float32))
    size: Tensor = (norm / parameter.numel() ** 0.5).clamp(min=smallest)
    return size


FAMILIES: Final = (
    Family(
        kind="adafactor", classes=of("torch", "Adafactor"), wire="other", read=_read_torch, terms=_terms,
        diagonal=_torch_diagonal,
    ),
    Family(
        kind="transformers_adafactor", classes=of("transformers", "Adafactor"), wire="other", read=_read_transformers,
        terms=_terms, diagonal=_transformers_diagonal,
    ),
)  # fmt: skip
"""Families of this module."""
