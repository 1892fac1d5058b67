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
    "gg",         # Σ g², g = the gradient that the optimizer was given
    "nonfinite",  # count of NaN and infinities in g
    "ww",         # Σ w², w = the weights after the step
    "ee",         # Σ e², e = the gradient with coupled weight decay; only if there is any
    "uu",         # Σ u², u = the update, unscaled
    "uw",         # Σ u·w
    "vv",         # Σ v
    "below",      # count of √v̂ < ε
    "rr",         # Σ e² / max(v, ε²·correction)
    "ep",         # Σ e·p, p = m − intake·e = decay·m_{t−1}
    "pp",         # Σ p²
)  # fmt: skip
"""Names of the sums over the coordinates of a tensor."""
SUM: Final = {name: position for position, name in enumerate(SUMS)}
"""Column of each sum."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Branches of the formulas; tensors with equal flags are measured together."""

    updates: bool
    """Whether u is known."""
    first: bool
    """Whether there is a first moment m."""
    second: bool
    """Whether there is a second moment v."""
    squared: bool
    """Whether v is a mean of squares (see `UpdateRule.squared`)."""
    uses_gradient: bool
    """Whether u has a part of the gradient itself (see `UpdateRule.uses_gradient`)."""
    divided: bool
    """Whether m already holds preconditioned gradients (see `UpdateRule.divided`)."""
    coupled: bool
    """Whether L2 weight decay is added to the gradient."""
    decoupled: bool
    """Whether there is decoupled weight decay."""
    negated: bool
    """Whether the optimizer maximizes."""
    intake: float
    """Share of a new gradient in m."""
    folded: float = 0.0
    """Momentum μ if the optimizer has added μ·m to the gradient in place (SGD's Nesterov with foreach), else 0."""

    @property
    def knows_effective(self) -> bool:
        """Whether e is known: coupled weight decay needs the weights before the step, and these need u."""
        return self.updates or not self.coupled


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Columns of `optimizers.term_table` that the formulas need, in the shape and dtype of the values."""

    direct: Tensor
    momentum: Tensor
    root: Tensor
    floor: Tensor
    threshold: Tensor
    lr: Tensor
    coupled: Tensor


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Coordinates of one tensor [n], or of several packed in rows [R, W], in the dtype of the computation."""

    g: Tensor
    """Gradient as the optimizer was given it."""
    w: Tensor
    """Weights after the step."""
    m: Tensor | None
    """First moment of the gradient."""
    v: Tensor | None
    """Second moment of the gradient."""


@dataclass(frozen=True, kw_only=True)
class Reduce:
    """Sums over coordinates for one of the two shapes: [n] → 0-d, or [R, W] → [R]."""

    dot: Callable[[Tensor, Tensor], Tensor]
    """Sum of the products of two tensors."""
    total: Callable[[Tensor], Tensor]
    """Sum of the elements."""
    count: Callable[[Tensor], Tensor]
    """Number of elements that are not zero, NaN included."""
    nothing: Callable[[Tensor], Tensor]
    """Zero counts in the shape that `count` returns."""


FLAT: Final = Reduce(dot=torch.dot, total=torch.sum, count=torch.count_nonzero, nothing=lambda x: x.new_zeros(()))
ROWS: Final = Reduce(
    dot=lambda a, b: (a * b).sum(1),
    total=lambda a: a.sum(1),
    count=lambda a: torch.count_nonzero(a, dim=1),
    nothing=lambda x: x.new_zeros(len(x)),
)


def names_of(flags: Flags) -> tuple[str, ...]:
    """Return the names of the sums that exist for these flags, in the order of `coordinate_sums`."""
    names = ["gg", "nonfinite", "ww"]
    if flags.updates:
        names.append("uu")
        if flags.coupled:
            names.append("ee")
        if flags.decoupled:
            names.append("uw")
    if flags.second and flags.squared:
        names += ("vv", "below", "rr") if flags.knows_effective else ("vv", "below")
    if flags.first and not flags.divided and flags.knows_effective:
        names += ("ep", "pp")
    return tuple(names)


def coordinate_sums(
    flags: Flags, terms: Terms, reduce: Reduce, x: Coordinates, space: tuple[Tensor, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the sums of `SUMS` that exist for these flags, by name; u is unscaled (see `unscaled_update`).

    ``space`` are two tensors in the shape and dtype of the gradient, which are overwritten. With it a tensor that is
    measured in slices allocates nothing for each slice, which on a CPU costs more than the arithmetic.
    """
    x = unfolded(flags, x)
    g, w = x.g, x.w
    gg = reduce.dot(g, g)
    sums = {"gg": gg, "nonfinite": _count_nonfinite(reduce, g, gg), "ww": reduce.dot(w, w)}
    own, other = space or (None, None)
    root_v = None if x.v is None else torch.sqrt(x.v, out=own) if flags.squared else x.v
    e = -g if flags.negated else g
    denominator: Tensor | None = None
    if flags.updates:
        denominator = update_denominator(terms, root_v, out=other)
        e = effective_gradient(flags, terms, x, denominator)
        u = unscaled_update(flags, terms, e, x.m, denominator, out=denominator)
        sums["uu"] = reduce.dot(u, u)
        if flags.coupled:
            sums["ee"] = reduce.dot(e, e)
        if flags.decoupled:
            sums["uw"] = reduce.dot(u, w)
    if x.v is not None and root_v is not None and flags.squared:
        sums["vv"] = reduce.total(x.v)
        is_above = is_above_threshold(root_v, terms.threshold)
        sums["below"] = reduce.nothing(root_v) if is_above else reduce.count(root_v < terms.threshold)
        if flags.knows_effective:
            if not is_above:
                torch.maximum(root_v, terms.threshold, out=root_v)
            ratio = torch.div(e, root_v, out=root_v)
            sums["rr"] = reduce.dot(ratio, ratio)
    if x.m is not None and not flags.divided and flags.knows_effective:
        previous = torch.sub(x.m, e, alpha=flags.intake, out=denominator)
        sums["ep"] = reduce.dot(e, previous)
        sums["pp"] = reduce.dot(previous, previous)
    return sums


def unfolded(flags: Flags, x: Coordinates) -> Coordinates:
    """Return ``x`` with the gradient as it was before the optimizer wrote into it."""
    if not flags.folded or x.m is None:
        return x
    return replace(x, g=torch.sub(x.g, x.m, alpha=flags.folded))


def update_denominator(terms: Terms, root_v: Tensor | None, out: Tensor | None = None) -> Tensor | None:
    """Return root·√v + floor, in ``out`` if it is given, or None, which stands for 1, without a second moment."""
    return None if root_v is None else torch.mul(root_v, terms.root, out=out).add_(terms.floor)


def effective_gradient(flags: Flags, terms: Terms, x: Coordinates, denominator: Tensor | None) -> Tensor:
    """Return the gradient as the optimizer used it: negated by `maximize`, with coupled weight decay added.

    The decay is that of the weights BEFORE the step, which are w + lr·u, and u may depend on the gradient itself; this
    function solves the two linear equations.
    """
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


def unscaled_update(
    flags: Flags,
    terms: Terms,
    e: Tensor,
    m: Tensor | None,
    denominator: Tensor | None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return u / scale, where the scale of a tensor is `momentum` if it has an m and `direct` otherwise.

    The scale is applied on the host, which saves one multiplication for each coordinate. A quotient is stored in
    ``out`` if it is given.
    """
    if m is None:
        numerator = e
    elif flags.divided:
        return m
    elif flags.uses_gradient:
        numerator = torch.addcmul(m, e, terms.direct / terms.momentum)
    else:
        numerator = m
    return numerator if denominator is None else torch.div(numerator, denominator, out=out)


def scaled_update(flags: Flags, terms: Terms, x: Coordinates) -> Tensor:
    """Return the update u of each coordinate, in the shape of ``x``."""
    x = unfolded(flags, x)
    denominator = update_denominator(terms, None if x.v is None else x.v.sqrt() if flags.squared else x.v)
    e = effective_gradient(flags, terms, x, denominator)
    return (terms.direct if x.m is None else terms.momentum) * unscaled_update(flags, terms, e, x.m, denominator)


def _count_nonfinite(reduce: Reduce, g: Tensor, gg: Tensor) -> Tensor:
    """Count the non-finite coordinates of ``g``.

    Counting is slow on a CPU, where a finite Σ g² can be read at no cost and proves that there is nothing to count.
    """
    if g.device.type == "cpu" and bool(torch.isfinite(gg).all()):
        return reduce.nothing(g)
    return reduce.count(g - g)


def is_above_threshold(root_v: Tensor, threshold: Tensor) -> bool:
    """Return whether every √v is known to be at least the threshold, which can be read at no cost on a CPU alone."""
    return root_v.device.type == "cpu" and bool((threshold <= root_v.min()).all())
