"""Sums over the coordinates of tensors, from which every layer statistic follows; plain torch.

Owns the formulas between (gradient, weight, m, v) and the sums. `layer_statistics` gives the sums their meaning,
`measurement_plan` decides which tensors are measured together. The same code serves two shapes: a flat slice [n] of one
tensor, whose terms are 0-d tensors, and many small tensors packed in rows [R, W], whose terms are columns [R, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

SUMS: Final = (
    "gg",         # Σ g²
    "nonfinite",  # count of NaN and infinities in g
    "ww",         # Σ w², after the step
    "ee",         # Σ e², e = the gradient as the optimizer sees it; only where it differs from g
    "uu",         # Σ u²
    "gu",         # Σ g·u
    "uw",         # Σ u·w
    "gw",         # Σ g·w
    "vv",         # Σ v
    "below",      # count of √v̂ < ε
    "rr",         # Σ e² / max(v, ε²·correction)
    "ep",         # Σ e·p, p = m − intake·e = decay·m_{t−1}
    "pp",         # Σ p²
)  # fmt: skip
SUM: Final = {name: position for position, name in enumerate(SUMS)}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What the formulas branch on; tensors of equal flags are measured together."""

    updates: bool
    """u is known."""
    first: bool
    """There is an m."""
    second: bool
    """There is a v."""
    squared: bool
    uses_gradient: bool
    divided: bool
    coupled: bool
    decoupled: bool
    negated: bool
    """`maximize`."""
    slope: bool
    """gᵀΔw is wanted, for the step probe."""
    intake: float
    """What m takes of a new gradient."""
    folded: float = 0.0
    """μ where the optimizer has added μ·m to the gradient in place (SGD's Nesterov with foreach), else 0."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The columns of `optimizers.term_table` that the formulas need, in the shape and dtype of the values."""

    direct: Tensor
    momentum: Tensor
    root: Tensor
    floor: Tensor
    threshold: Tensor
    lr: Tensor
    coupled: Tensor


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Some coordinates of one tensor, or of several packed in rows; all in the dtype of the computation."""

    g: Tensor
    w: Tensor
    """After the step."""
    m: Tensor | None
    v: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Reduce:
    """How to sum over coordinates, in one of the two shapes."""

    dot: Callable[[Tensor, Tensor], Tensor]
    total: Callable[[Tensor], Tensor]
    count: Callable[[Tensor], Tensor]
    """Number of elements that are not zero; NaN counts."""
    nothing: Callable[[Tensor], Tensor]
    """The count 0, in the shape that counting ``x`` would have."""


FLAT: Final = Reduce(dot=torch.dot, total=torch.sum, count=torch.count_nonzero, nothing=lambda x: x.new_zeros(()))
ROWS: Final = Reduce(
    dot=lambda a, b: (a * b).sum(1),
    total=lambda a: a.sum(1),
    count=lambda a: torch.count_nonzero(a, dim=1),
    nothing=lambda x: x.new_zeros(len(x)),
)


def coordinate_sums(flags: Flags, terms: Terms, reduce: Reduce, x: Coordinates) -> dict[str, Tensor]:
    """The sums of `SUMS` that exist for these flags; u is left without its scale (see `unscaled_update`)."""
    x = unfolded(flags, x)
    g, w = x.g, x.w
    gg = reduce.dot(g, g)
    sums = {"gg": gg, "nonfinite": _count_nonfinite(reduce, g, gg), "ww": reduce.dot(w, w)}
    if not flags.updates:
        return sums
    root_v = None if x.v is None else x.v.sqrt() if flags.squared else x.v
    denominator = update_denominator(terms, root_v)
    e = effective_gradient(flags, terms, x, denominator)
    u = unscaled_update(flags, terms, e, x.m, denominator)
    sums["uu"] = reduce.dot(u, u)
    if flags.slope:
        sums["gu"] = reduce.dot(g, u)
    if flags.coupled:
        sums["ee"] = reduce.dot(e, e)
    if flags.decoupled:
        sums["uw"] = reduce.dot(u, w)
        if flags.slope:
            sums["gw"] = reduce.dot(g, w)
    if x.v is not None and root_v is not None and flags.squared:
        sums["vv"] = reduce.total(x.v)
        sums["below"] = _count_below(reduce, root_v, terms.threshold)
        ratio = e / torch.maximum(root_v, terms.threshold)
        sums["rr"] = reduce.dot(ratio, ratio)
    if x.m is not None and not flags.divided:
        previous = torch.sub(x.m, e, alpha=flags.intake)
        sums["ep"] = reduce.dot(e, previous)
        sums["pp"] = reduce.dot(previous, previous)
    return sums


def unfolded(flags: Flags, x: Coordinates) -> Coordinates:
    """``x`` with the gradient as it was before the optimizer wrote into it."""
    if not flags.folded or x.m is None:
        return x
    return replace(x, g=torch.sub(x.g, x.m, alpha=flags.folded))


def update_denominator(terms: Terms, root_v: Tensor | None) -> Tensor | None:
    """root·√v + floor; None stands for 1."""
    return None if root_v is None else (root_v * terms.root).add_(terms.floor)


def effective_gradient(flags: Flags, terms: Terms, x: Coordinates, denominator: Tensor | None) -> Tensor:
    """The gradient as the optimizer saw it: with `maximize` and with coupled weight decay of the weights BEFORE the
    step. Those are w + lr·u, and u may depend on the gradient itself; the two linear equations are solved here."""
    e = -x.g if flags.negated else x.g
    if not flags.coupled:
        return e
    carried = x.w
    if x.m is not None:
        part = x.m * terms.momentum
        carried = torch.addcmul(x.w, part if denominator is None or flags.divided else part / denominator, terms.lr)
    e = torch.addcmul(e, carried, terms.coupled)
    if not flags.uses_gradient:
        return e
    feedback = terms.coupled * terms.lr * terms.direct
    return e / (1.0 - (feedback if denominator is None else feedback / denominator))


def unscaled_update(flags: Flags, terms: Terms, e: Tensor, m: Tensor | None, denominator: Tensor | None) -> Tensor:
    """u / scale, where a tensor's scale, `momentum` where there is an m and `direct` elsewhere, is left to the host:
    one multiplication for each coordinate less."""
    if m is None:
        numerator = e
    elif flags.divided:
        return m
    elif flags.uses_gradient:
        numerator = torch.addcmul(m, e, terms.direct / terms.momentum)
    else:
        numerator = m
    return numerator if denominator is None else numerator / denominator


def _count_nonfinite(reduce: Reduce, g: Tensor, gg: Tensor) -> Tensor:
    """Counting is slow on a CPU; a finite Σ g² proves that there is nothing to count, and reading it there is free."""
    if g.device.type == "cpu" and bool(torch.isfinite(gg).all()):
        return reduce.nothing(g)
    return reduce.count(g - g)


def _count_below(reduce: Reduce, root_v: Tensor, threshold: Tensor) -> Tensor:
    if root_v.device.type == "cpu" and bool((threshold <= root_v.min()).all()):
        return reduce.nothing(root_v)
    return reduce.count(root_v < threshold)
