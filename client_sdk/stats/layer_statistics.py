"""Statistics of layers from the sums over their coordinates; NumPy on the host, off the training thread.

Owns the definition of each statistic; docs/explanation/science.md explains how to read them and names
the sources. No torch, no device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client_sdk.optimizers import TERM, Kind, UpdateRule
from client_sdk.stats.sums import SUM

Array = NDArray[np.float64]

ALWAYS: Final = ("grad_norm", "weight_norm")
"""Statistics that exist for every optimizer."""
WITH_UPDATE: Final = ("update_norm", "update_ratio")
"""Statistics that exist if the update rule of the optimizer is known."""
WITH_SECOND_MOMENT: Final = ("v_rms", "rms_ratio", "decoupling", "u_rms", "eps_fraction")
"""Statistics that exist if the optimizer keeps a mean of squared gradients."""


def statistics_of(kind: Kind, rules: Sequence[UpdateRule]) -> tuple[str, ...]:
    """Return the names of the statistics that exist for an optimizer, in the order of the block's columns."""
    names = list(ALWAYS)
    if kind != "other":
        names += WITH_UPDATE
        if any(rule.second is not None and rule.squared for rule in rules):
            names += WITH_SECOND_MOMENT
        elif any(rule.second is not None for rule in rules):
            names.append("u_rms")
        if any(rule.first is not None and not rule.divided and rule.decay > 0 for rule in rules):
            names.append("grad_momentum_cosine")
    return (*names, "nonfinite")


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums that one step measured for P tensors."""

    values: Array
    """Values of `SUMS`, [P, len(SUMS)]; NaN where a sum does not exist for a tensor."""
    terms: Array
    """Values of `TERMS`, [P, len(TERMS)]."""
    scale: Array
    """Factor between the update and the unscaled u of the sums, [P]."""
    sizes: Array
    """Number of real numbers in each tensor, [P]."""
    rows: NDArray[np.intp]
    """Layer of each tensor, [P]."""


AMOUNTS: Final = (
    "tensors",     # number of tensors
    "size",        # number of coordinates
    "gg",          # Σ g²
    "ee",          # Σ e², e = the gradient with coupled weight decay
    "ww",          # Σ w²
    "update",      # Σ Δw²
    "uu",          # Σ u²
    "vv",          # Σ v̂
    "rr",          # Σ e² / max(v̂, ε²)
    "below",       # count of √v̂ < ε
    "along",       # Σ e·p, p = the momentum before the step; NaN at a tensor's first step
    "past",        # Σ p²
    "nonfinite",   # count of NaN and infinities in g
    "slope",       # Σ g·Δw
)  # fmt: skip
"""Amounts of a layer, from which every statistic follows. They are sums over its coordinates: amounts of parts of a
layer, such as those that the ranks of a sharded training hold, may be added."""
AMOUNT: Final = {name: position for position, name in enumerate(AMOUNTS)}
"""Column of each amount."""


def layer_amounts(sums: Sums, layer_count: int, counts: NDArray[np.bool_] | None = None) -> Array:
    """Return the `AMOUNTS` of every layer, [layers, len(AMOUNTS)]; zeros for a layer that was not measured.

    An amount is NaN if it does not exist for one of the layer's tensors. ``counts`` [P] are the tensors that count, by
    default all. Never raises.
    """

    def column(name: str) -> Array:
        return sums.values[:, SUM[name]]

    def term(name: str) -> Array:
        return sums.terms[:, TERM[name]]

    with np.errstate(all="ignore"):
        has_no_coupling = np.isnan(term("coupled")) | (term("coupled") == 0)
        by_tensor = {
            "tensors": np.ones(len(sums.rows)),
            "size": sums.sizes,
            "gg": column("gg"),
            "ee": np.where(has_no_coupling, column("gg"), column("ee")),
            "ww": column("ww"),
            "update": _update_square(sums),
            "uu": sums.scale**2 * column("uu"),
            "vv": column("vv") / term("correction"),
            "rr": column("rr") * term("correction"),
            "below": column("below"),
            "along": np.where(term("first_step") == 0, column("ep"), np.nan),
            "past": column("pp"),
            "nonfinite": column("nonfinite"),
            "slope": _slope(sums),
        }
        amounts = np.zeros((layer_count, len(AMOUNTS)))
        table = np.stack([by_tensor[name] for name in AMOUNTS], axis=1)
        rows = sums.rows
        if counts is not None:
            table, rows = table[counts], rows[counts]
        np.add.at(amounts, rows, table)
    return amounts


def layer_statistics(amounts: Array) -> Mapping[str, Array]:
    """Return every statistic of every layer by name, [layers] each; NaN where it was not measured. Never raises."""
    with np.errstate(all="ignore"):
        return _statistics(np.where(amounts[:, :1] > 0, amounts, np.nan))


def statistics_block(amounts: Array, names: Sequence[str]) -> NDArray[np.float32]:
    """Return the block of the statistics ``names``, [layers, statistics]. Never raises."""
    statistics = layer_statistics(amounts)
    with np.errstate(all="ignore"):
        return np.stack([statistics[name] for name in names], axis=1).astype(np.float32)


def totals(amounts: Array) -> dict[str, float]:
    """Return totals over all layers: `grad_norm`, `decoupling` and `slope`.

    `slope` is gᵀΔw of the whole step, the change of the loss to first order. `decoupling` is NaN without a second
    moment, and `slope` is NaN unless it was measured.
    """
    with np.errstate(all="ignore"):
        total = dict(zip(AMOUNTS, amounts.sum(0), strict=True))
        return {
            "grad_norm": float(np.sqrt(total["gg"])),
            "decoupling": float(total["gg"] / total["vv"]),
            "slope": float(total["slope"]),
        }


def _slope(sums: Sums) -> Array:
    lr, decay = sums.terms[:, TERM["lr"]], sums.terms[:, TERM["decoupled"]]
    along = lr * sums.scale * sums.values[:, SUM["gu"]]
    shrink = _where_decoupled(decay, lr * decay * sums.values[:, SUM["gw"]])
    slope: Array = -(along + shrink) / (1.0 - lr * decay)
    return slope


def _statistics(amounts: Array) -> dict[str, Array]:
    total = dict(zip(AMOUNTS, amounts.T, strict=True))
    size = total["size"]
    update_norm, weight_norm = np.sqrt(total["update"]), np.sqrt(total["ww"])
    # Rounding of m − intake·g leaves about 1e-7 of g where the earlier momentum was exactly zero.
    has_past = total["past"] > 1e-12 * total["ee"]
    cosine = np.where(has_past, total["along"] / np.sqrt(total["ee"] * total["past"]), np.nan)
    return {
        "grad_norm": np.sqrt(total["gg"]),
        "weight_norm": weight_norm,
        "update_norm": update_norm,
        "update_ratio": update_norm / weight_norm,
        "v_rms": np.sqrt(total["vv"] / size),
        "rms_ratio": np.sqrt(total["rr"] / size),
        "decoupling": total["ee"] / total["vv"],
        "u_rms": np.sqrt(total["uu"] / size),
        "eps_fraction": total["below"] / size,
        "grad_momentum_cosine": np.clip(cosine, -1.0, 1.0),
        "nonfinite": total["nonfinite"],
    }


def _update_square(sums: Sums) -> Array:
    """Return ‖Δw‖² of each tensor, [P], with Δw = −(η·u + η·γ·w) / (1 − η·γ) and w the weights after the step."""
    lr, decay = sums.terms[:, TERM["lr"]], sums.terms[:, TERM["decoupled"]]
    u_square = sums.scale**2 * sums.values[:, SUM["uu"]]
    cross = _where_decoupled(decay, 2.0 * decay * sums.scale * sums.values[:, SUM["uw"]])
    weights = _where_decoupled(decay, decay**2 * sums.values[:, SUM["ww"]])
    square: Array = lr**2 * np.maximum(u_square + cross + weights, 0.0) / (1.0 - lr * decay) ** 2
    return square


def _where_decoupled(decay: Array, value: Array) -> Array:
    return np.where(decay == 0, 0.0, value)
