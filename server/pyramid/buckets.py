"""Reduction of values over steps to buckets that hide no spike. Pure.

A bucket of width B covers the steps k·B … k·B + B − 1 and keeps the minimum, the maximum, the last value and the number
of values that were not finite. B is a power of two, so that each bucket is the union of two narrower ones, and 8
buckets form a bucket of the next level of the pyramid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from server.pyramid.footprint import ARRAY_BYTES

Matrix = NDArray[np.floating]
Counts = NDArray[np.int32]
StepRange = tuple[int, int]
"""First and last step of a range, both included."""
Field = Literal["min", "max", "last"]
ALL_FIELDS: frozenset[Field] = frozenset({"min", "max", "last"})

_EXTREMES: Mapping[Field, np.ufunc] = {"min": np.fmin, "max": np.fmax}


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Non-empty buckets in ascending order, one row for each series or layer."""

    numbers: NDArray[np.int64]
    """Number k of each bucket, shape (b,); the bucket begins at step k·B."""
    fields: Mapping[Field, Matrix]
    """Requested fields, shape (rows, b) each. A minimum or maximum is NaN where nothing finite was measured. A last
    value may be finite or not; it is NaN also where nothing was measured.
    """
    nonfinite: Counts | None
    """Number of measured values that were not finite, shape (rows, b), or None where all are 0."""

    @property
    def min(self) -> Matrix:
        """Minima of the buckets, shape (rows, b)."""
        return self.fields["min"]

    @property
    def max(self) -> Matrix:
        """Maxima of the buckets, shape (rows, b)."""
        return self.fields["max"]

    @property
    def last(self) -> Matrix:
        """Last values of the buckets, shape (rows, b)."""
        return self.fields["last"]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.fields.values())))

    @property
    def nbytes(self) -> int:
        """Size in memory in bytes, the objects around the numbers included."""
        arrays = [self.numbers, *self.fields.values(), *([] if self.nonfinite is None else [self.nonfinite])]
        return sum(ARRAY_BYTES + array.nbytes for array in arrays)

    def measured(self) -> NDArray[np.bool_]:
        """Return whether anything was measured in each bucket, shape (rows, b)."""
        found = ~np.isnan(next(iter(self.fields.values())))
        return found if self.nonfinite is None else found | (self.nonfinite > 0)

    def counts(self) -> Counts:
        """Return ``nonfinite`` as an array, also where all counts are 0."""
        if self.nonfinite is None:
            return np.zeros((self.rows, len(self.numbers)), dtype=np.int32)
        return self.nonfinite

    def at(self, columns: slice | NDArray[Any]) -> Buckets:
        """Return some of the buckets."""
        return Buckets(
            numbers=self.numbers[columns],
            fields={field: matrix[:, columns] for field, matrix in self.fields.items()},
            nonfinite=None if self.nonfinite is None else self.nonfinite[:, columns],
        )

    def of(self, rows: slice | NDArray[np.int64]) -> Buckets:
        """Return some of the rows. Their buckets may contain no measured value."""
        return Buckets(
            numbers=self.numbers,
            fields={field: matrix[rows] for field, matrix in self.fields.items()},
            nonfinite=None if self.nonfinite is None else self.nonfinite[rows],
        )

    def between(self, first: int, last: int) -> Buckets:
        """Return the buckets with first ≤ k ≤ last."""
        left, right = np.searchsorted(self.numbers, [first, last + 1])
        return self if right - left == len(self.numbers) else self.at(slice(int(left), int(right)))

    def filled(self) -> Buckets:
        """Return only the buckets in which anything was measured."""
        kept = np.flatnonzero(self.measured().any(axis=0))
        return self if len(kept) == len(self.numbers) else self.at(kept)


def choose_width(step_from: int, step_to: int, max_buckets: int) -> int:
    """Return the smallest power of two whose aligned buckets cover the range with at most ``max_buckets`` buckets.

    >>> choose_width(0, 999, 1000), choose_width(0, 999, 100), choose_width(7, 8, 1)
    (1, 16, 16)
    """
    width = 1
    while step_to // width - step_from // width + 1 > max_buckets:
        width *= 2
    return width


def bucket_of(steps: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return the number of the bucket of each step.

    Implemented as a shift, because the width of the widest possible range, 2**63, does not fit into an int64.

    >>> bucket_of(np.array([0, 7, 8, 21]), 8).tolist()
    [0, 0, 1, 2]
    """
    return steps >> (width.bit_length() - 1)


def first_step_of(numbers: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return the first step of each bucket.

    >>> first_step_of(np.array([0, 1, 2]), 8).tolist()
    [0, 8, 16]
    """
    return numbers << (width.bit_length() - 1)


def reduce(
    steps: NDArray[np.int64],
    values: Matrix,
    measured: NDArray[np.bool_] | None,
    width: int,
    fields: Iterable[Field] = ALL_FIELDS,
) -> Buckets:
    """Reduce values of shape (rows, n) at n ascending steps to buckets.

    ``measured`` says which values count, or is None where all do. Buckets in which no row measured anything are left
    out.

    >>> spike = reduce(np.arange(8), np.array([[1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0]]), None, 4)
    >>> spike.numbers.tolist(), spike.max.tolist(), spike.last.tolist()
    ([0, 1], [[9.0, 1.0]], [[1.0, 1.0]])
    """
    finite = np.isfinite(values)
    if (measured is None or measured.all()) and finite.all():
        each = Buckets(numbers=steps, fields=dict.fromkeys(fields, values), nonfinite=None)
        return widen(each, width)
    counts = np.ones(values.shape, dtype=np.bool_) if measured is None else measured
    nan = values.dtype.type(np.nan)
    extremes, last = np.where(finite & counts, values, nan), np.where(counts, values, nan)
    each = Buckets(
        numbers=steps,
        fields={field: last if field == "last" else extremes for field in fields},
        nonfinite=(counts & ~finite).astype(np.int32),
    )
    return widen(each.filled(), width)


def widen(buckets: Buckets, factor: int) -> Buckets:
    """Return buckets ``factor`` times as wide.

    Entries of equal number belong to the same bucket; the later one was measured later.
    """
    numbers = buckets.numbers
    gaps = np.diff(numbers)
    if (gaps == 1).all():
        while factor > 1 and len(buckets.numbers) > 1:
            buckets, factor = _halve(buckets), factor // 2
        if factor == 1 or not len(numbers):
            return buckets
        return Buckets(numbers=bucket_of(buckets.numbers, factor), fields=buckets.fields, nonfinite=buckets.nonfinite)
    if factor == 1 and (gaps > 0).all():
        return buckets
    wide = bucket_of(numbers, factor)
    starts = np.flatnonzero(np.concatenate(([True], wide[1:] != wide[:-1])))
    fields: dict[Field, Matrix] = {}
    for field, matrix in buckets.fields.items():
        if field == "last":
            measured = buckets.measured() if buckets.nonfinite is None else ~np.isnan(matrix) | (buckets.nonfinite > 0)
            where = np.maximum.reduceat(np.where(measured, np.arange(len(wide)), -1), starts, axis=1)
            picked = np.take_along_axis(matrix, np.maximum(where, 0), axis=1)
            fields[field] = np.where(where >= 0, picked, matrix.dtype.type(np.nan))
        else:
            fields[field] = _EXTREMES[field].reduceat(matrix, starts, axis=1)
    bad = buckets.nonfinite
    return Buckets(
        numbers=wide[starts],
        fields=fields,
        nonfinite=None if bad is None else np.add.reduceat(bad, starts, axis=1, dtype=np.int32),
    )


def _halve(buckets: Buckets) -> Buckets:
    """Return buckets twice as wide. Requires consecutive buckets, and is many times faster than a general reduction."""
    numbers = buckets.numbers
    alone = int(numbers[0]) & 1  # The first bucket is the second half of its pair.
    pairs = (len(numbers) - alone) // 2
    left, right = slice(alone, alone + 2 * pairs, 2), slice(alone + 1, alone + 2 * pairs, 2)
    wide = np.arange(int(numbers[0]) >> 1, (int(numbers[-1]) >> 1) + 1)
    bad = buckets.nonfinite
    fields: dict[Field, Matrix] = {}
    for field, matrix in buckets.fields.items():
        out = np.empty((matrix.shape[0], len(wide)), dtype=matrix.dtype)
        out[:, :alone], out[:, alone + pairs :] = matrix[:, :alone], matrix[:, alone + 2 * pairs :]
        inside = out[:, alone : alone + pairs]
        if field == "last":
            later = matrix[:, right]
            unmeasured = np.isnan(later) if bad is None else np.isnan(later) & (bad[:, right] == 0)
            np.copyto(inside, later)
            np.copyto(inside, matrix[:, left], where=unmeasured)
        else:
            _EXTREMES[field](matrix[:, left], matrix[:, right], out=inside)
        fields[field] = out
    if bad is not None:
        total = np.empty((bad.shape[0], len(wide)), dtype=np.int32)
        total[:, :alone], total[:, alone + pairs :] = bad[:, :alone], bad[:, alone + 2 * pairs :]
        np.add(bad[:, left], bad[:, right], out=total[:, alone : alone + pairs])
        bad = total
    return Buckets(numbers=wide, fields=fields, nonfinite=bad)


class Canvas:
    """Buckets of one width that are assembled from parts, in the order in which the parts were measured."""

    def __init__(
        self, numbers: NDArray[np.int64], rows: int, dtype: np.dtype[Any], fields: Iterable[Field] = ALL_FIELDS
    ) -> None:
        """Create a canvas without values. ``numbers`` are those of all possible buckets, ascending."""
        self._numbers = numbers
        shape = (rows, len(numbers))
        self._fields: dict[Field, Matrix] = {field: np.full(shape, np.nan, dtype=dtype) for field in fields}
        self._nonfinite: Counts | None = None

    def put(self, part: Buckets, rows: NDArray[np.int64] | None = None) -> None:
        """Add a part in which no bucket occurs twice.

        ``rows`` are the rows of the canvas that the part's rows belong to, each at most once; None means all, in order.
        """
        count = len(part.numbers)
        if count == 0:
            return
        found = np.searchsorted(self._numbers, part.numbers)
        at: slice | NDArray[np.intp] = found
        if int(found[-1]) - int(found[0]) == count - 1:
            at = slice(int(found[0]), int(found[0]) + count)
        where: Any = (slice(None), at)
        if rows is not None:
            where = (rows, at) if isinstance(at, slice) else np.ix_(rows, at)
        for field, new in part.fields.items():
            matrix = self._fields[field]
            if field == "last":
                measured = ~np.isnan(new) if part.nonfinite is None else ~np.isnan(new) | (part.nonfinite > 0)
                matrix[where] = np.where(measured, new, matrix[where])
            else:
                matrix[where] = _EXTREMES[field](matrix[where], new)
        if part.nonfinite is not None:
            if self._nonfinite is None:
                self._nonfinite = np.zeros(next(iter(self._fields.values())).shape, dtype=np.int32)
            self._nonfinite[where] += part.nonfinite

    def buckets(self) -> Buckets:
        """Return all buckets, empty ones included."""
        return Buckets(numbers=self._numbers, fields=self._fields, nonfinite=self._nonfinite)
