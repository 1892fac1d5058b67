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

from client_sdk.optimizers import TERM, UpdateRule
from client_sdk.stats.movement import MOVE
from client_sdk.stats.sums import SUM

Array = NDArray[np.float64]


MEASURED: Final = (
    "grad_norm", "weight_norm", "update_norm", "update_ratio", "v_rms", "rms_ratio", "decoupling", "u_rms",
    "eps_fraction", "grad_momentum_cosine", "period_two", "swallowed", "nonfinite",
)  # fmt: skip
"""Statistics that the SDK measures, in the order of the block's columns; an optimizer has some of them."""


def statistics_of(rules: Sequence[UpdateRule], *, is_moved: bool = True, has_rounding: bool = False) -> tuple[str, ...]:
    """Return the names of the statistics that exist for an optimizer, in the order of the block's columns.

    ``is_moved`` is False if the movement of the weights cannot be seen, and ``has_rounding`` is True if some weights
    are of low precision.
    """
    squared = [rule for rule in rules if rule.second is not None and rule.squared]
    knows_u = [rule for rule in rules if rule.is_exact or rule.is_scaled_by_rate]
    has_momentum = any(rule.first is not None and not rule.divided and rule.decay > 0 for rule in rules)
    exists = {
        "grad_norm": True,
        "weight_norm": True,
        "update_norm": is_moved,
        "update_ratio": is_moved,
        "v_rms": bool(squared),
        "rms_ratio": any(_knows_effective(rule) and not rule.is_rotated for rule in squared),
        "decoupling": bool(squared),
        "u_rms": is_moved and any(rule.second is not None or not rule.is_exact for rule in knows_u),
        "eps_fraction": bool(squared),
        "grad_momentum_cosine": has_momentum and any(map(_knows_effective, rules)),
        "period_two": True,
        "swallowed": is_moved and has_rounding and any(rule.kind != "other" for rule in rules),
        "nonfinite": True,
    }
    return tuple(name for name in MEASURED if exists[name])


def _knows_effective(rule: UpdateRule) -> bool:
    return rule.is_exact or rule.coupled == 0


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
    moved: Array
    """Values of `MOVED`, [P, len(MOVED)]; NaN for a tensor whose weights were not compared."""
    is_measured: NDArray[np.bool_]
    """Whether Δw is taken from the weights instead of the formula, [P]."""
    follows_formula: bool
    """Whether the weights moved as the formula says, as far as they were compared."""
    period_two: Array
    """Σ e² of the period-two component and its level, [P, 2]; NaN where it is not known."""


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
    "pushed",      # count of coordinates whose update is not zero; 0 for tensors that were not compared
    "stuck",       # count of those whose weight did not change
    "alternating",  # Σ e², e = the period-two component of the preconditioned gradient y
    "level",       # Σ of the moving average of y²
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

    def move(name: str) -> Array:
        return sums.moved[:, MOVE[name]]

    measured = sums.is_measured
    with np.errstate(all="ignore"):
        has_no_coupling = np.isnan(term("coupled")) | (term("coupled") == 0)
        by_tensor = {
            "tensors": np.ones(len(sums.rows)),
            "size": sums.sizes,
            "gg": column("gg"),
            "ee": np.where(has_no_coupling, column("gg"), column("ee")),
            "ww": column("ww"),
            "update": np.where(measured, move("moved"), _update_square(sums)),
            "uu": np.where(np.isnan(column("uu")), _unscaled(sums), sums.scale**2 * column("uu")),
            "vv": column("vv") / term("correction"),
            "rr": column("rr") * term("correction"),
            "below": column("below"),
            "along": np.where(term("first_step") == 0, column("ep"), np.nan),
            "past": column("pp"),
            "nonfinite": column("nonfinite"),
            "pushed": np.nan_to_num(np.where(measured, move("pushed"), 0.0)),
            "stuck": np.nan_to_num(np.where(measured, move("stuck"), 0.0)),
            "alternating": sums.period_two[:, 0],
            "level": sums.period_two[:, 1],
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
    """Return totals over all layers: `grad_norm`, and `decoupling`, which is NaN without a second moment."""
    with np.errstate(all="ignore"):
        total = dict(zip(AMOUNTS, amounts.sum(0), strict=True))
        return {
            "grad_norm": float(np.sqrt(total["gg"])),
            "decoupling": float(total["gg"] / total["vv"]),
        }


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
        "period_two": np.minimum(np.sqrt(total["alternating"] / total["level"]), 1.0),
        "swallowed": total["stuck"] / total["pushed"],
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


def _unscaled(sums: Sums) -> Array:
    """Return Σ u² of tensors without a formula, [P]; 0 if no weight moved, as then no decay was applied either."""
    moved = sums.moved[:, MOVE["moved"]]
    unscaled = sums.moved[:, MOVE["unscaled"]]
    square: Array = np.where((moved == 0) & np.isfinite(unscaled), 0.0, unscaled)
    return square


def _where_decoupled(decay: Array, value: Array) -> Array:
    return np.where(decay == 0, 0.0, value)
