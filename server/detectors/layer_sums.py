"""Sums over the layers of a step: Σg², Σg²/Σv̂, non-finite coordinates. Pure.

All steps of a segment are summed in a few array operations. Sums run along the layers of one step, in their order, so
that a step has the same sums to the last bit whatever other steps are summed with it. Steps with gaps are summed one by
one, over the layers that were measured. Whether a step has gaps is seen from its sums: a value that is not finite makes
them so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from server.models import LayerSums, Layout, Sample

STATISTICS: Final[tuple[str, ...]] = ("grad_norm", "v_rms", "decoupling", "nonfinite", "update_ratio", "eps_fraction")
"""Layer statistics that the detectors read."""
FRESH: Final = 1e-5
"""Relative difference below which v̂ equals g² in float32 precision."""
MOST_COORDINATES: Final = 2**53
"""Largest number of non-finite coordinates that is told; a layer's count is a float32 and may be anything."""

Columns = Mapping[str, NDArray[np.float32]]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
_along: Final = np.add.reduce
"""Sum along an axis; the method of an array calls it through two more functions."""


def layer_sums(layout: Layout, columns: Columns) -> list[LayerSums]:
    """Return the sums of each step.

    `columns` holds an array of shape (steps, layers) for each of `STATISTICS` that the layout has, at least one.
    """
    steps, layers = next(iter(columns.values())).shape
    sizes = _sizes(layout.sizes) if len(layout.sizes) == layers else None
    with np.errstate(all="ignore"):
        norms = columns.get("grad_norm")
        squares = None if norms is None or not layers else np.square(norms, dtype=np.float64)
        gradients = _gradients(squares, steps)
        decouplings = _decouplings(columns, sizes, squares, gradients)
        counts = _nonfinite(columns.get("nonfinite"), steps)
        updates = _largest(columns.get("update_ratio"), steps)
        shares = _weighted(columns.get("eps_fraction"), sizes, steps)
    has_gradients = norms is not None
    names = layout.layers
    return [
        LayerSums(
            has_gradients=has_gradients,
            squares=own,
            known=known,
            square_sum=total,
            decoupling=decoupling,
            is_fresh=is_fresh,
            descent=descent,
            nonfinite=nonfinite,
            guilty=tuple(names[layer] for layer in guilty) if guilty else (),
            update_ratio=update,
            eps_fraction=share,
        )
        for (total, own, known), (decoupling, is_fresh, descent), (nonfinite, guilty), update, share in zip(
            gradients, decouplings, counts, updates, shares, strict=True
        )
    ]


def sums_of(sample: Sample) -> LayerSums:
    """Return the sums of one sample, empty ones if it has no layers."""
    if sample.layer_sums is not None:
        return sample.layer_sums
    if sample.layout is None or not sample.has_layers:
        return LayerSums()
    found = {name: sample.statistic(name) for name in STATISTICS}
    columns = {name: np.ascontiguousarray(column)[None] for name, column in found.items() if column is not None}
    return layer_sums(sample.layout, columns)[0] if columns else LayerSums()


class _Sizes:
    """Sizes of the layers of a layout."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.values: Array = np.asarray(sizes, dtype=np.float64)
        self.total = max(float(self.values.sum()), 1.0)


@lru_cache(maxsize=64)
def _sizes(sizes: tuple[int, ...]) -> _Sizes:
    return _Sizes(sizes)


_Gradient = tuple[float, Array | None, Mask | None]
_Decoupling = tuple[float | None, bool, float | None]
_NO_GRADIENTS: Final[_Gradient] = (0.0, None, None)
_NO_MEMORY: Final[_Decoupling] = (None, False, None)


def _gradients(squares: Array | None, steps: int) -> list[_Gradient]:
    """Return for each step Σg², g² of its layers with 0 for unknown ones, and the mask of the known ones.

    The squares are None if no layer is known, the mask is None if all are.
    """
    if squares is None:
        return [_NO_GRADIENTS] * steps
    # A square that is NaN or infinite makes the sum so.
    return [
        (total, own, None) if total < np.inf else _gradient_with_gaps(own)
        for own, total in zip(squares, _along(squares, axis=1).tolist(), strict=True)
    ]


def _gradient_with_gaps(squares: Array) -> _Gradient:
    known = np.isfinite(squares)
    if not known.any():
        return _NO_GRADIENTS
    own = np.where(known, squares, 0.0)
    return float(_along(own)), own, known


def _decouplings(
    columns: Columns, sizes: _Sizes | None, squares: Array | None, gradients: list[_Gradient]
) -> list[_Decoupling]:
    """Return for each step Σg²/Σv̂, whether v̂ equals g² in every layer, and Σv̂·Σ(g²/√v̂)/Σg².

    They are equal at the first step of a fresh optimizer state. v̂ is taken from its own statistic, or else from g²
    divided by the decoupling.
    """
    rms, ratio = columns.get("v_rms"), columns.get("decoupling")
    if squares is None:
        return [_NO_MEMORY] * len(gradients)
    if rms is not None and sizes is not None:
        second = np.square(rms, dtype=np.float64)
        second *= sizes.values
        pulled = squares / rms
    elif ratio is None:
        return [_NO_MEMORY] * len(gradients)
    else:
        second = squares / ratio
        pulled = np.zeros_like(squares) if sizes is None else squares * np.sqrt(sizes.values / second)
    smallest = np.minimum.reduce(second, axis=1, initial=np.inf)
    memory, pull = _along(second, axis=1), _along(pulled, axis=1)
    found: list[_Decoupling] = []
    for at, ((total, own, known), least, of_v, along) in enumerate(
        zip(gradients, smallest.tolist(), memory.tolist(), pull.tolist(), strict=True)
    ):
        if own is None:
            found.append(_NO_MEMORY)
        elif known is None and least > 0 and of_v < np.inf:
            found.append(_decoupling(own, second[at], total, of_v, along))
        else:
            found.append(_decoupling_with_gaps(own, second[at], pulled[at], known))
    return found


def _decoupling_with_gaps(squares: Array, second: Array, pulled: Array, known: Mask | None) -> _Decoupling:
    usable = np.isfinite(second) & (second > 0)
    if known is not None:
        usable &= known
    measured, memory = squares[usable], second[usable]
    of_v = float(_along(memory))
    if not 0 < of_v < np.inf:
        return _NO_MEMORY
    return _decoupling(measured, memory, float(_along(measured)), of_v, float(_along(pulled[usable])))


def _decoupling(squares: Array, second: Array, of_g: float, of_v: float, along: float) -> _Decoupling:
    """Return the decoupling of one step, of the layers that were measured."""
    # Where v̂ equals g² in every layer, the sums are equal too, which is seldom.
    is_near = abs(of_g - of_v) <= 2 * FRESH * of_v
    is_fresh = is_near and bool((np.abs(squares / second - 1.0) < FRESH).all())
    return max(of_g / of_v, 1e-30), is_fresh, of_v * along / of_g if along > 0 and of_g > 0 else None


def _nonfinite(counts: NDArray[np.float32] | None, steps: int) -> list[tuple[int, tuple[int, ...]]]:
    """Return for each step the number of non-finite coordinates, 0 if not measured, and the first three such layers."""
    if counts is None or not np.logical_or.reduce(counts, axis=None):
        return [(0, ())] * steps
    clean = np.maximum(np.nan_to_num(counts.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0), 0.0)
    return [
        (int(min(total, MOST_COORDINATES)), tuple(np.flatnonzero(clean[at])[:3].tolist()) if total else ())
        for at, total in enumerate(_along(clean, axis=1).tolist())
    ]


def _largest(column: NDArray[np.float32] | None, steps: int) -> list[float | None]:
    """Return the largest finite value of each step."""
    if column is None:
        return [None] * steps
    largest: list[float | None] = np.maximum.reduce(column, axis=1, initial=-np.inf).tolist()
    for at, value in enumerate(largest):
        if value is None or not -np.inf < value < np.inf:
            finite = column[at][np.isfinite(column[at])]
            largest[at] = float(finite.max()) if len(finite) else None
    return largest


def _weighted(column: NDArray[np.float32] | None, sizes: _Sizes | None, steps: int) -> list[float | None]:
    """Return the mean over the layers of each step, weighted by their size if it is known."""
    if column is None:
        return [None] * steps
    weights = None if sizes is None else sizes.values
    weighted = column.astype(np.float64) if weights is None else column * weights
    total = max(float(column.shape[1]), 1.0) if sizes is None else sizes.total
    means: list[float | None] = [mean / total for mean in _along(weighted, axis=1).tolist()]
    for at, mean in enumerate(means):
        if mean is not None and -np.inf < mean < np.inf and column.shape[1]:
            continue
        mask = np.isfinite(column[at])
        weight = mask.sum() if weights is None else _along(weights[mask])
        means[at] = float(_along(weighted[at][mask]) / max(float(weight), 1.0)) if mask.any() else None
    return means
