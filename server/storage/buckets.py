"""Reducing values over steps to buckets that hide no spike. Pure.

A bucket of width B covers the steps k·B … k·B + B − 1 and keeps the least, greatest and last value and how many were
not finite. B is a power of two, so that buckets of one zoom are unions of those of the next, and 8 of them make a
bucket of the next level of the pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from server.storage.lru import ARRAY_BYTES

Matrix = NDArray[np.floating]
Field = Literal["min", "max", "last"]
ALL_FIELDS: frozenset[Field] = frozenset({"min", "max", "last"})


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Rows (series or layers) × non-empty buckets, ascending. A field that nobody asked for is NaN throughout."""

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
        return sum(ARRAY_BYTES + array.nbytes for array in arrays)


def choose_width(step_from: int, step_to: int, most: int) -> int:
    """The least power of two that covers step_from … step_to with at most ``most`` aligned buckets."""
    width = 1
    while step_to // width - step_from // width + 1 > most:
        width *= 2
    return width


def bucket_of(steps: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """The bucket of each step. A shift: the width of the longest range there can be, 2**63, is no int64."""
    return steps >> (width.bit_length() - 1)


def first_step_of(numbers: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """The first step of each bucket."""
    return numbers << (width.bit_length() - 1)


def reduce(steps: NDArray[np.int64], values: Matrix, measured: NDArray[np.bool_], width: int) -> Buckets:
    """Buckets of (rows, n) values at n ascending steps.

    Only values that are ``measured`` count; buckets in which no row measured anything are left out.
    """
    rows = values.shape[0]
    if len(steps) == 0 or rows == 0:
        return empty(rows, values.dtype)
    numbers = bucket_of(steps, width)
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


def merge(parts: Sequence[Buckets], factor: int, fields: frozenset[Field] = ALL_FIELDS) -> Buckets:
    """Buckets of one series in the order in which they were measured, as buckets ``factor`` times as wide.

    At least one part. Parts may share buckets; where they do, the last value is that of the later part.
    """
    numbers = bucket_of(np.concatenate([part.numbers for part in parts]), factor)
    if len(parts) == 1 and factor == 1:
        return parts[0]
    order = np.argsort(numbers, kind="stable") if np.any(numbers[1:] < numbers[:-1]) else None
    if order is not None:
        numbers = numbers[order]
    nonfinite = _gather([part.nonfinite for part in parts], order)
    rows, count = nonfinite.shape
    if count == 0:
        return parts[0]
    starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1])))
    dtype = parts[0].max.dtype
    untold = np.broadcast_to(dtype.type(np.nan), (rows, len(starts)))
    least = greatest = last = untold
    if "min" in fields:
        least = np.fmin.reduceat(_gather([part.min for part in parts], order), starts, axis=1)
    if "max" in fields:
        greatest = np.fmax.reduceat(_gather([part.max for part in parts], order), starts, axis=1)
    if "last" in fields:
        values = _gather([part.last for part in parts], order)
        measured = ~np.isnan(values) | (nonfinite > 0)
        where = np.maximum.reduceat(np.where(measured, np.arange(count), -1), starts, axis=1)
        last = np.where(where >= 0, np.take_along_axis(values, np.maximum(where, 0), axis=1), dtype.type(np.nan))
    return Buckets(
        numbers=numbers[starts],
        min=least,
        max=greatest,
        last=last,
        nonfinite=np.add.reduceat(nonfinite, starts, axis=1, dtype=np.int32),
    )


def _gather(matrices: Sequence[NDArray[Any]], order: NDArray[np.int64] | None) -> NDArray[Any]:
    together = matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=1)
    return together if order is None else together[:, order]
