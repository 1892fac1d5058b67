"""Sums over the layers of a step: Σg², Σg²/Σv̂, non-finite coordinates. Pure.

All steps of a segment are summed in a few array operations. Sums run along the layers of one step, in their order, so
that a step has the same sums to the last bit whatever other steps are summed with it. Steps with gaps are summed one by
one, over the layers that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from server.models import LayerSums, Layout, Sample

STATISTICS: Final[tuple[str, ...]] = ("grad_norm", "v_rms", "decoupling", "nonfinite", "update_ratio", "eps_fraction")
"""Layer statistics that the detectors read."""
FRESH: Final = 1e-5
"""Relative difference below which v̂ equals g² in float32 precision."""

Columns = Mapping[str, NDArray[np.float32]]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def layer_sums(layout: Layout, columns: Columns) -> list[LayerSums]:
    """Return the sums of each step.

    `columns` holds an array of shape (steps, layers) for each of `STATISTICS` that the layout has, at least one.
    """
    steps = len(next(iter(columns.values())))
    with np.errstate(all="ignore"):
        squares, known = _squares(columns.get("grad_norm"))
        decouplings = _decouplings(layout, columns, squares, known)
        gradients = _gradients(squares, known, steps)
        counts = _nonfinite(columns.get("nonfinite"), steps)
        updates = _largest(columns.get("update_ratio"), steps)
        shares = _weighted(layout, columns.get("eps_fraction"), steps)
    summed = []
    for at in range(steps):
        nonfinite, guilty = counts[at]
        total, own, own_known = gradients[at]
        summed.append(
            LayerSums(
                has_gradients=squares is not None,
                squares=own,
                known=own_known,
                square_sum=total,
                decoupling=decouplings[at][0],
                is_fresh=decouplings[at][1],
                descent=decouplings[at][2],
                nonfinite=nonfinite,
                guilty=tuple(layout.layers[layer] for layer in guilty),
                update_ratio=updates[at],
                eps_fraction=shares[at],
            )
        )
    return summed


def sums_of(sample: Sample) -> LayerSums:
    """Return the sums of one sample, empty ones if it has no layers."""
    if sample.layer_sums is not None:
        return sample.layer_sums
    if sample.layout is None or not sample.has_layers:
        return LayerSums()
    found = {name: sample.statistic(name) for name in STATISTICS}
    columns = {name: np.ascontiguousarray(column)[None] for name, column in found.items() if column is not None}
    return layer_sums(sample.layout, columns)[0] if columns else LayerSums()


def _squares(norms: NDArray[np.float32] | None) -> tuple[Array | None, Mask | None]:
    """Return g² of each layer with 0 for unknown values, and the mask of the known ones."""
    if norms is None:
        return None, None
    squares = np.square(norms, dtype=np.float64)
    known = np.isfinite(squares)
    return (squares if known.all() else np.where(known, squares, 0.0)), known


def _gradients(squares: Array | None, known: Mask | None, steps: int) -> list[tuple[float, Array | None, Mask | None]]:
    """Return for each step Σg², g² of its layers and the mask of the known ones.

    The squares are None if no layer is known, the mask is None if all are.
    """
    if squares is None or known is None:
        return [(0.0, None, None)] * steps
    measured = known.sum(axis=1)
    layers = known.shape[1]
    return [
        (total, squares[at] if count else None, None if count == layers else known[at])
        for at, (total, count) in enumerate(zip(squares.sum(axis=1).tolist(), measured.tolist(), strict=True))
    ]


def _decouplings(
    layout: Layout, columns: Columns, squares: Array | None, known: Mask | None
) -> list[tuple[float | None, bool, float | None]]:
    """Return for each step Σg²/Σv̂, whether v̂ equals g² in every layer, and Σv̂·Σ(g²/√v̂)/Σg².

    They are equal at the first step of a fresh optimizer state. v̂ is taken from its own statistic, or else from g²
    divided by the decoupling.
    """
    steps = len(next(iter(columns.values())))
    rms, ratio = columns.get("v_rms"), columns.get("decoupling")
    if squares is None or known is None:
        return [(None, False, None)] * steps
    if rms is not None and len(layout.sizes) == rms.shape[1]:
        second = np.square(rms, dtype=np.float64) * np.asarray(layout.sizes, dtype=np.float64)
    elif ratio is not None:
        second = squares / np.asarray(ratio, dtype=np.float64)
    else:
        return [(None, False, None)] * steps
    usable = np.isfinite(second) & known & (second > 0)
    second = np.where(usable, second, 0.0)
    whole = usable.all(axis=1)
    relative = squares / np.where(usable, second, 1.0)
    fresh = ((np.abs(relative - 1.0) < FRESH) | ~usable).all(axis=1)
    pulled = _pulled(layout, squares, second, usable)
    gradient, memory, pull = squares.sum(axis=1), second.sum(axis=1), pulled.sum(axis=1)
    for at in np.flatnonzero(~whole).tolist():
        gradient[at], memory[at] = squares[at][usable[at]].sum(), second[at][usable[at]].sum()
        pull[at] = pulled[at][usable[at]].sum()
    valid = usable.any(axis=1) & (memory > 0) & np.isfinite(memory)
    return [
        (max(of_g / of_v, 1e-30), is_fresh, of_v * along / of_g if along > 0 and of_g > 0 else None)
        if is_valid
        else (None, False, None)
        for of_g, of_v, along, is_fresh, is_valid in zip(
            gradient.tolist(), memory.tolist(), pull.tolist(), fresh.tolist(), valid.tolist(), strict=True
        )
    ]


def _pulled(layout: Layout, squares: Array, second: Array, usable: Mask) -> Array:
    """Return g²/√v̂ of each layer, with its mean v̂; zeros where the sizes of the layers are unknown."""
    if len(layout.sizes) != squares.shape[1]:
        return np.zeros_like(squares)
    sizes = np.asarray(layout.sizes, dtype=np.float64)
    return np.where(usable, squares * np.sqrt(sizes / np.where(usable, second, 1.0)), 0.0)


def _nonfinite(counts: NDArray[np.float32] | None, steps: int) -> list[tuple[int, tuple[int, ...]]]:
    """Return for each step the number of non-finite coordinates, 0 if not measured, and the first three such layers."""
    if counts is None:
        return [(0, ())] * steps
    clean = np.maximum(np.nan_to_num(counts.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0), 0.0)
    totals = clean.sum(axis=1).tolist()
    return [
        (int(total), tuple(np.flatnonzero(clean[at])[:3].tolist()) if total else ()) for at, total in enumerate(totals)
    ]


def _largest(column: NDArray[np.float32] | None, steps: int) -> list[float | None]:
    """Return the largest finite value of each step."""
    if column is None:
        return [None] * steps
    largest = np.where(np.isfinite(column), column, -np.inf).max(axis=1, initial=-np.inf).tolist()
    return [value if value > -np.inf else None for value in largest]


def _weighted(layout: Layout, column: NDArray[np.float32] | None, steps: int) -> list[float | None]:
    """Return the mean over the layers of each step, weighted by their size if it is known."""
    if column is None:
        return [None] * steps
    known = np.isfinite(column)
    has_sizes = len(layout.sizes) == column.shape[1]
    sizes = np.asarray(layout.sizes, dtype=np.float64) if has_sizes else np.empty(0)
    if has_sizes and column.shape[1] and known.all():
        means: list[float | None] = ((column * sizes).sum(axis=1) / max(float(sizes.sum()), 1.0)).tolist()
        return means
    means = []
    for values, mask in zip(column, known, strict=True):
        if not mask.any():
            means.append(None)
        elif has_sizes:
            means.append(float((values[mask] * sizes[mask]).sum() / max(float(sizes[mask].sum()), 1.0)))
        else:
            means.append(float(values[mask].mean()))
    return means
