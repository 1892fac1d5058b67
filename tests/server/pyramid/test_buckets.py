"""Buckets, compared with the simplest way to compute them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from server.pyramid.buckets import Buckets, Canvas, Field, choose_width, reduce, widen


def naive(
    steps: NDArray[np.int64], values: NDArray[np.float64], measured: NDArray[np.bool_], width: int
) -> dict[int, tuple[float, float, float, int]]:
    """Return (min, max, last, nonfinite) of each bucket of one row, computed value by value."""
    found: dict[int, tuple[float, float, float, int]] = {}
    for step, value, counts in zip(steps.tolist(), values.tolist(), measured.tolist(), strict=True):
        if not counts:
            continue
        low, high, _, bad = found.get(step // width, (np.nan, np.nan, np.nan, 0))
        if np.isfinite(value):
            found[step // width] = (float(np.fmin(low, value)), float(np.fmax(high, value)), value, bad)
        else:
            found[step // width] = (low, high, value, bad + 1)
    return found


def row_of(buckets: Buckets, row: int, measured: NDArray[np.bool_]) -> dict[int, tuple[float, float, float, int]]:
    return {
        number: (
            float(buckets.min[row, at]),
            float(buckets.max[row, at]),
            float(buckets.last[row, at]),
            int(buckets.counts()[row, at]),
        )
        for at, number in enumerate(buckets.numbers.tolist())
    }


def same(left: tuple[float, ...], right: tuple[float, ...]) -> bool:
    return all(a == b or (np.isnan(a) and np.isnan(b)) for a, b in zip(left, right, strict=True))


FIELDS: tuple[Field, ...] = ("min", "max", "last")
STEPS = st.lists(st.integers(0, 300), min_size=0, max_size=60).map(
    lambda steps: np.array(sorted(steps), dtype=np.int64)
)


@given(STEPS, st.integers(0, 8), st.data())
def test_reduce_matches_a_count_by_hand(steps: NDArray[np.int64], power: int, data: st.DataObject) -> None:
    shape = (2, len(steps))
    values = data.draw(hnp.arrays(np.float64, shape, elements=st.floats(-1e9, 1e9) | st.sampled_from([np.nan, np.inf])))
    measured = data.draw(hnp.arrays(np.bool_, shape))
    buckets = reduce(steps, values, measured, 2**power)
    assert np.all(np.diff(buckets.numbers) > 0)
    for row in range(2):
        expected = naive(steps, values[row], measured[row], 2**power)
        found = row_of(buckets, row, measured)
        for number, entry in found.items():
            assert same(entry, expected.pop(number, (np.nan, np.nan, np.nan, 0)))
        assert not expected


@given(STEPS, st.integers(0, 5), st.data())
def test_zooming_in_never_loses_an_extreme(steps: NDArray[np.int64], power: int, data: st.DataObject) -> None:
    values = data.draw(hnp.arrays(np.float64, (1, len(steps)), elements=st.floats(-1e9, 1e9)))
    measured = np.ones(values.shape, dtype=np.bool_)
    coarse, fine = (reduce(steps, values, measured, width) for width in (2 ** (power + 1), 2**power))
    for at, number in enumerate(coarse.numbers.tolist()):
        inside = fine.between(2 * number, 2 * number + 1)
        assert coarse.max[0, at] == inside.max.max()
        assert coarse.min[0, at] == inside.min.min()
        assert coarse.last[0, at] == inside.last[0, -1]


@given(st.integers(0, 10**12), st.integers(0, 10**9), st.integers(1, 5_000))
def test_the_width_is_the_smallest_power_of_two_that_fits(step_from: int, length: int, max_buckets: int) -> None:
    step_to = step_from + length

    def count(width: int) -> int:
        return step_to // width - step_from // width + 1

    width = choose_width(step_from, step_to, max_buckets)
    assert width & (width - 1) == 0
    assert count(width) <= max_buckets
    assert width == 1 or count(width // 2) > max_buckets


def test_a_width_fits_the_longest_run_there_can_be() -> None:
    assert choose_width(0, 2**63 - 1, 1) == 2**63


@given(STEPS, st.integers(0, 4), st.integers(0, 4), st.data())
def test_widening_buckets_is_reducing_to_wider_ones(
    steps: NDArray[np.int64], fine: int, more: int, data: st.DataObject
) -> None:
    shape = (2, len(steps))
    values = data.draw(hnp.arrays(np.float64, shape, elements=st.floats(-1e9, 1e9) | st.sampled_from([np.nan, np.inf])))
    measured = data.draw(hnp.arrays(np.bool_, shape))
    wide = reduce(steps, values, measured, 2 ** (fine + more))
    steply = widen(reduce(steps, values, measured, 2**fine), 2**more)
    np.testing.assert_array_equal(wide.numbers, steply.numbers)
    for field in FIELDS:
        np.testing.assert_array_equal(wide.fields[field], steply.fields[field])
    np.testing.assert_array_equal(wide.counts(), steply.counts())


@given(STEPS, st.integers(0, 4), st.integers(0, 60), st.data())
def test_parts_on_a_canvas_are_one_range(steps: NDArray[np.int64], power: int, cut: int, data: st.DataObject) -> None:
    shape = (2, len(steps))
    values = data.draw(hnp.arrays(np.float64, shape, elements=st.floats(-1e9, 1e9) | st.sampled_from([np.nan, np.inf])))
    measured = data.draw(hnp.arrays(np.bool_, shape))
    whole = reduce(steps, values, measured, 2**power)
    canvas = Canvas(np.unique(steps // 2**power), 3, np.dtype("<f8"))
    rows = np.array([2, 0])
    for part in (slice(0, cut), slice(cut, None)):
        canvas.put(reduce(steps[part], values[:, part], measured[:, part], 2**power), rows)
    found = canvas.buckets().filled()
    np.testing.assert_array_equal(found.numbers, whole.numbers)
    for field in FIELDS:
        np.testing.assert_array_equal(found.fields[field][rows], whole.fields[field])
        assert np.isnan(found.fields[field][1]).all()
    np.testing.assert_array_equal(found.counts()[rows], whole.counts())
