"""Adam and its variants: torch's, the fused ones of Apex, Transformer Engine and DeepSpeed, and those of bitsandbytes.

Sources: torch.optim's own reference implementations; Kingma & Ba 2015 (Adam), Loshchilov & Hutter 2019 (AdamW), Dozat
2016 (NAdam), Liu et al. 2020 (RAdam), Reddi et al. 2018 (AMSGrad), Dettmers et al. 2022 (8-bit states). The fused and
bitsandbytes classes are known by their names and the keys of their state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch

from client_sdk.optimizers.update_rule import (
    SMALLEST_EPS,
    Columns,
    Family,
    Kind,
    UpdateRule,
    is_decoupled,
    of,
    rate_of,
)


def _read(kind: Kind, group: Mapping[str, Any], *, has_decoupled: bool, first: str, second: str) -> UpdateRule:
    beta1, beta2 = (float(beta) for beta in group["betas"][:2])
    weight_decay = float(group.get("weight_decay", 0.0))
    return UpdateRule(
        kind=kind, lr=rate_of(group), sign=-1 if group.get("maximize") else 1, decay=beta1, intake=1.0 - beta1,
        beta2=beta2, eps=float(group["eps"]), coupled=0.0 if has_decoupled else weight_decay,
        decoupled=weight_decay if has_decoupled else 0.0, momentum_decay=float(group.get("momentum_decay", 0.0)),
        first=first, second=second, squared=kind != "adamax", is_corrected=bool(group.get("bias_correction", True)),
        steps=group.get("step"),
    )  # fmt: skip


def _read_torch(kind: Kind, group: Mapping[str, Any]) -> UpdateRule:
    second = "exp_inf" if kind == "adamax" else "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    return _read(kind, group, has_decoupled=is_decoupled(group), first="exp_avg", second=second)


def _read_fused(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    has_decoupled = bool(getattr(optimizer, "adam_w_mode", True))
    rule = _read("fused_adam", group, has_decoupled=has_decoupled, first="exp_avg", second="exp_avg_sq")
    if type(optimizer).__module__.partition(".")[0] == "deepspeed":
        return replace(rule, steps=None)  # its groups hold a counter too, which stays where it began
    return rule


def _read_bitsandbytes(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    # The kernels decay the weights themselves for Adam and AdamW alike, after the update.
    return _read("bitsandbytes_adam", group, has_decoupled=True, first="state1", second="state2")


def _adam(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    one = t * 0.0 + 1.0
    eps = max(rule.eps, SMALLEST_EPS)
    warm, correction = (1.0 - rule.decay**t, 1.0 - rule.beta2**t) if rule.is_corrected else (one, one)
    return {
        "momentum": 1.0 / warm,
        "root": correction**-0.5,
        "floor": one * eps,
        "threshold": eps * correction**0.5,
        "correction": correction,
        "first_step": (t <= 1.0) * one,
    }


def _nadam(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    mu = rule.decay * (1.0 - 0.5 * 0.96 ** (t * rule.momentum_decay))
    mu_next = rule.decay * (1.0 - 0.5 * 0.96 ** ((t + 1.0) * rule.momentum_decay))
    return _adam(rule, t, mu_product) | {
        "direct": (1.0 - mu) / (1.0 - mu_product),
        "momentum": mu_next / (1.0 - mu_product * mu_next),
    }


def _radam(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    columns = _adam(rule, t, mu_product)
    one, correction = t * 0.0 + 1.0, columns["correction"]
    longest = 2.0 / (1.0 - rule.beta2) - 1.0
    length = longest - 2.0 * t * rule.beta2**t / correction
    rectified = (length > 5.0) * one
    square = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
    rectifier = abs(square) ** 0.5 * correction**0.5
    return columns | {
        "momentum": columns["momentum"] * (rectified * rectifier + 1.0 - rectified),
        "root": rectified,
        "floor": rectified * columns["floor"] + 1.0 - rectified,
        "threshold": columns["floor"],
    }


def _adamax(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    one = t * 0.0 + 1.0
    return _adam(rule, t, mu_product) | {
        "root": one,
        "floor": one * SMALLEST_EPS,  # v holds ε already
        "threshold": t * 0.0,
        "correction": one,
    }


FAMILIES: Final = (
    Family(
        kind="adam", classes=of("torch", "Adam", "AdamW"), wire="adam", terms=_adam,
        read=lambda optimizer, group: _read_torch("adam", group),
    ),
    Family(
        kind="nadam", classes=of("torch", "NAdam"), wire="adam", terms=_nadam,
        read=lambda optimizer, group: _read_torch("nadam", group),
    ),
    Family(
        kind="radam", classes=of("torch", "RAdam"), wire="adam", terms=_radam,
        read=lambda optimizer, group: _read_torch("radam", group),
    ),
    Family(
        kind="adamax", classes=of("torch", "Adamax"), wire="adam", terms=_adamax,
        read=lambda optimizer, group: _read_torch("adamax", group),
    ),
    Family(
        kind="fused_adam", wire="adam", terms=_adam, read=_read_fused,
        classes=of("apex", "FusedAdam")
        | of("transformer_engine", "FusedAdam")
        | of("deepspeed", "FusedAdam", "DeepSpeedCPUAdam"),
    ),
    Family(
        kind="bitsandbytes_adam", wire="adam", terms=_adam, read=_read_bitsandbytes,
        classes=of(
            "bitsandbytes", "Adam", "Adam8bit", "Adam32bit", "PagedAdam", "PagedAdam8bit", "PagedAdam32bit",
            "AdamW", "AdamW8bit", "AdamW32bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit",
        ),
    ),
)  # fmt: skip
"""Families of this module."""
