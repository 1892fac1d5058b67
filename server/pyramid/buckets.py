"""Reducing values over steps to buckets that hide no spike. Pure.

A bucket of width B covers the steps k·B … k·B + B − 1 and keeps the least, greatest and last value and how many were
not finite. B is a power of two, so that buckets of one zoom are unions of those of the next, and 8 of them make a
bucket of the next level of the pyramid.
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
    """Rows (series or layers) × non-empty buckets, ascending."""

    numbers: NDArray[np.int64]
    """(b,): k of each bucket; it begins at the step k·B."""
    fields: Mapping[Field, Matrix]
    """Those that were asked for, each (rows, b). Least and greatest: NaN where nothing finite was measured. Last: of
    what was measured, finite or not; NaN also where nothing was."""
    nonfinite: Counts | None
    """(rows, b): how many values were measured and not finite; None: none anywhere."""

    @property
    def min(self) -> Matrix:
        return self.fields["min"]

    @property
    def max(self) -> Matrix:
        return self.fields["max"]

    @property
    def last(self) -> Matrix:
        return self.fields["last"]

    @property
    def rows(self) -> int:
        return len(next(iter(self.fields.values())))

    @property
    def nbytes(self) -> int:
        arrays = [self.numbers, *self.fields.values(), *([] if self.nonfinite is None else [self.nonfinite])]
        return sum(ARRAY_BYTES + array.nbytes for array in arrays)

    def measured(self) -> NDArray[np.bool_]:
        """(rows, b): whether anything was."""
        found = ~np.isnan(next(iter(self.fields.values())))
        return found if self.nonfinite is None else found | (self.nonfinite > 0)

    def counts(self) -> Counts:
        """``nonfinite``, also where all are 0."""
        if self.nonfinite is None:
            return np.zeros((self.rows, len(self.numbers)), dtype=np.int32)
        return self.nonfinite

    def at(self, columns: slice | NDArray[Any]) -> Buckets:
        """Some of the buckets."""
        return Buckets(
            numbers=self.numbers[columns],
            fields={field: matrix[:, columns] for field, matrix in self.fields.items()},
            nonfinite=None if self.nonfinite is None else self.nonfinite[:, columns],
        )

    def of(self, rows: slice | NDArray[np.int64]) -> Buckets:
        """Some of the rows, with buckets in which nothing may have been measured."""
        return Buckets(
            numbers=self.numbers,
            fields={field: matrix[rows] for field, matrix in self.fields.items()},
            nonfinite=None if self.nonfinite is None else self.nonfinite[rows],
        )

    def between(self, first: int, last: int) -> Buckets:
        """The buckets with first ≤ k ≤ last."""
        left, right = np.searchsorted(self.numbers, [first, last + 1])
        return self if right - left == len(self.numbers) else self.at(slice(int(left), int(right)))

    def filled(self) -> Buckets:
        """Without the buckets in which nothing was measured."""
        kept = np.flatnonzero(self.measured().any(axis=0))
        return self if len(kept) == len(self.numbers) else self.at(kept)


def choose_width(step_from: int, step_to: int, max_buckets: int) -> int:
    """The least power of two that covers step_from … step_to with at most ``most`` aligned buckets."""
    width = 1
    while step_to // width - step_from // width + 1 > max_buckets:
        width *= 2
    return width


def bucket_of(steps: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """The bucket of each step. A shift: the width of the longest range there can be, 2**63, is no int64."""
    return steps >> (width.bit_length() - 1)


def first_step_of(numbers: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """The first step of each bucket."""
    return numbers << (width.bit_length() - 1)


def reduce(
    steps: NDArray[np.int64],
    values: Matrix,
    measured: NDArray[np.bool_] | None,
    width: int,
    fields: Iterable[Field] = ALL_FIELDS,
) -> Buckets:
    """Buckets of (rows, n) values at n ascending steps.

    ``measured``: which values count; None for all. Buckets in which no row measured anything are left out.
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
    """Buckets ``factor`` times as wide. Equal numbers are of the same bucket, the later ones were measured later."""
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
    """Buckets twice as wide of consecutive ones: many times faster than a reduction over groups of any size."""
    numbers = buckets.numbers
    alone = int(numbers[0]) & 1  # the first bucket is the second half of its pair
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
    """Buckets of one width, put together part by part, in the order in which the parts were measured."""

    def __init__(
        self, numbers: NDArray[np.int64], rows: int, dtype: np.dtype[Any], fields: Iterable[Field] = ALL_FIELDS
    ) -> None:
        """``numbers``: of all buckets that there may be, ascending."""
        self._numbers = numbers
        shape = (rows, len(numbers))
        self._fields: dict[Field, Matrix] = {field: np.full(shape, np.nan, dtype=dtype) for field in fields}
        self._nonfinite: Counts | None = None

    def put(self, part: Buckets, rows: NDArray[np.int64] | None = None) -> None:
        """``rows``: of the canvas, each at most once; None for all, in order. A part has no bucket twice."""
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
        """All of them, empty ones included."""
        return Buckets(numbers=self._numbers, fields=self._fields, nonfinite=self._nonfinite)
