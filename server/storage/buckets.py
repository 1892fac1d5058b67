"""Reducing values over steps to buckets that hide no spike. Pure.

A bucket of width B covers the steps k·B … k·B + B − 1 and keeps the least, greatest and last value and how many were
not finite. B is a power of two, so that buckets of one zoom are unions of those of the next, and 8 of them make a
bucket of the next level of the pyramid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Rows (series or layers) × non-empty buckets, ascending."""

    numbers: NDArray[np.int64]
    """(b,): k of each bucket; it begins at the step k·B."""
    min: Matrix
    """(rows, b); NaN where nothing finite was measured."""
    max: Matrix
    last: Matrix
    """The last value measured, finite or not; NaN also where nothing was measured."""
    nonfinite: NDArray[np.int32]
    """(rows, b): how many values were measured and not finite."""

    def between(self, first: int, last: int) -> Buckets:
        """The buckets with first ≤ k ≤ last."""
        left, right = np.searchsorted(self.numbers, [first, last + 1])
        cut = slice(int(left), int(right))
        return Buckets(
            numbers=self.numbers[cut],
            min=self.min[:, cut],
            max=self.max[:, cut],
            last=self.last[:, cut],
            nonfinite=self.nonfinite[:, cut],
        )

    @property
    def nbytes(self) -> int:
        arrays = (self.numbers, self.min, self.max, self.last, self.nonfinite)
        return sum(array.nbytes for array in arrays)


def choose_width(step_from: int, step_to: int, most: int) -> int:
    """The least power of two that covers step_from … step_to with at most ``most`` aligned buckets."""
    width = 1
    while step_to // width - step_from // width + 1 > most:
        width *= 2
    return width


def reduce(steps: NDArray[np.int64], values: Matrix, measured: NDArray[np.bool_], width: int) -> Buckets:
    """Buckets of (rows, n) values at n ascending steps.

    Only values that are ``measured`` count; buckets in which no row measured anything are left out.
    """
    rows = values.shape[0]
    if len(steps) == 0 or rows == 0:
        return empty(rows, values.dtype)
    numbers = steps // width
    starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1])))
    finite = measured & np.isfinite(values)
    least = np.minimum.reduceat(np.where(finite, values, np.inf), starts, axis=1)
    greatest = np.maximum.reduceat(np.where(finite, values, -np.inf), starts, axis=1)
    any_finite = np.logical_or.reduceat(finite, starts, axis=1)
    nonfinite = np.add.reduceat((measured & ~finite).astype(np.int32), starts, axis=1)
    # Index of the last measured value of each bucket, −1 for none.
    where = np.maximum.reduceat(np.where(measured, np.arange(len(steps)), -1), starts, axis=1)
    last = np.where(where >= 0, np.take_along_axis(values, np.maximum(where, 0), axis=1), np.nan)
    kept = (where >= 0).any(axis=0)
    nan = values.dtype.type(np.nan)
    return Buckets(
        numbers=numbers[starts][kept],
        min=np.where(any_finite, least, nan)[:, kept],
        max=np.where(any_finite, greatest, nan)[:, kept],
        last=last.astype(values.dtype)[:, kept],
        nonfinite=nonfinite[:, kept],
    )


def empty(rows: int, dtype: np.dtype[np.floating]) -> Buckets:
    """No bucket of ``rows`` rows."""
    nothing = np.empty((rows, 0), dtype=dtype)
    return Buckets(
        numbers=np.empty(0, dtype=np.int64),
        min=nothing,
        max=nothing,
        last=nothing,
        nonfinite=np.empty((rows, 0), dtype=np.int32),
    )


def join(parts: list[Buckets]) -> Buckets:
    """Buckets of consecutive ranges as one; the parts must not share a bucket. At least one part."""
    if len(parts) == 1:
        return parts[0]
    return Buckets(
        numbers=np.concatenate([part.numbers for part in parts]),
        min=np.concatenate([part.min for part in parts], axis=1),
        max=np.concatenate([part.max for part in parts], axis=1),
        last=np.concatenate([part.last for part in parts], axis=1),
        nonfinite=np.concatenate([part.nonfinite for part in parts], axis=1),
    )
