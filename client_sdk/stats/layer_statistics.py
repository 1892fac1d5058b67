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


def layer_statistics(sums: Sums, layer_count: int) -> Mapping[str, Array]:
    """Return every statistic of every layer by name, [layers] each; NaN where it was not measured. Never raises."""
    with np.errstate(all="ignore"):
        return _statistics(sums, layer_count)


def slope(sums: Sums) -> float:
    """Return gᵀΔw of the whole step, the change of the loss to first order; negative if the step descends."""
    with np.errstate(all="ignore"):
        lr, decay = sums.terms[:, TERM["lr"]], sums.terms[:, TERM["decoupled"]]
        along = lr * sums.scale * sums.values[:, SUM["gu"]]
        shrink = _where_decoupled(decay, lr * decay * sums.values[:, SUM["gw"]])
        return float(np.sum(-(along + shrink) / (1.0 - lr * decay)))


def _statistics(sums: Sums, layer_count: int) -> dict[str, Array]:
    def column(name: str) -> Array:
        return sums.values[:, SUM[name]]

    def term(name: str) -> Array:
        return sums.terms[:, TERM[name]]

    def by_layer(per_tensor: Array) -> Array:
        total = np.full(layer_count, np.nan)
        total[sums.rows] = 0.0
        np.add.at(total, sums.rows, per_tensor)
        return total

    gg, ww, size = by_layer(column("gg")), by_layer(column("ww")), by_layer(sums.sizes)
    effective = np.where(np.isnan(term("coupled")) | (term("coupled") == 0), column("gg"), column("ee"))
    update_square = _update_square(sums)
    v_hat = by_layer(column("vv") / term("correction"))
    u_square = by_layer(sums.scale**2 * column("uu"))
    update_norm, weight_norm = np.sqrt(by_layer(update_square)), np.sqrt(ww)
    has_past = term("first_step") == 0
    along = by_layer(np.where(has_past, column("ep"), np.nan))
    past = by_layer(column("pp"))
    e_square = by_layer(effective)
    # Rounding of m − intake·g leaves about 1e-7 of g where the earlier momentum was exactly zero.
    cosine = np.where(past > 1e-12 * e_square, along / np.sqrt(e_square * past), np.nan)
    return {
        "grad_norm": np.sqrt(gg),
        "weight_norm": weight_norm,
        "update_norm": update_norm,
        "update_ratio": update_norm / weight_norm,
        "v_rms": np.sqrt(v_hat / size),
        "rms_ratio": np.sqrt(by_layer(column("rr") * term("correction")) / size),
        "decoupling": e_square / v_hat,
        "u_rms": np.sqrt(u_square / size),
        "eps_fraction": by_layer(column("below")) / size,
        "grad_momentum_cosine": np.clip(cosine, -1.0, 1.0),
        "nonfinite": by_layer(column("nonfinite")),
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
