"""Expected results, computed from the records one by one, to compare queries with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from client_sdk.protocol import Record
from server.storage.measurements.heatmap import Reduce
from tests.server.storage.conftest import Stores
from tests.support.writer import record

VALUES = st.floats(-1e6, 1e6, width=32) | st.sampled_from([math.nan, math.inf, -math.inf])
StepRange = tuple[int | None, int | None]


def visible(records: Sequence[Record]) -> list[Record]:
    """Return the records of the latest view: each one is replaced by every later step back to its step or below."""
    shown: list[Record] = []
    for item in records:
        if shown and item.step < shown[-1].step:
            shown = [before for before in shown if before.step < item.step]
        shown.append(item)
    return shown


@st.composite
def batches(draw: st.DrawFn) -> list[list[Record]]:
    """Generate batches of one writer with equal steps, gaps, steps back, and metrics that only some records have."""
    step = draw(st.integers(0, 50))
    found = []
    for _ in range(draw(st.integers(1, 8))):
        batch = []
        for _ in range(draw(st.integers(1, 12))):
            step = max(0, step + draw(st.sampled_from([0, 1, 1, 1, 1, 1, 7, 40, -9])))
            extra: dict[str, Any] = {"accuracy": draw(VALUES)} if draw(st.booleans()) else {}
            block = [[draw(VALUES), float(step)], [float(-step), draw(VALUES)]] if draw(st.booleans()) else None
            batch.append(record(step, draw(VALUES), block=block, **extra))
        found.append(batch)
    return found


class Expected:
    """Expected results of queries of the latest view."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = visible(records)

    def inside(self, window: StepRange) -> list[Record]:
        first, last = 0 if window[0] is None else window[0], math.inf if window[1] is None else window[1]
        return [item for item in self.records if first <= item.step <= last]

    def series(self, name: str, window: StepRange, width: int) -> dict[int, tuple[float, float, float, int]]:
        """Return (min, max, last, nonfinite) of each bucket."""
        found: dict[int, tuple[float, float, float, int]] = {}
        for item in self.inside(window):
            if name not in item.scalars:
                continue
            value = item.scalars[name]
            low, high, _, bad = found.get(item.step // width, (math.nan, math.nan, math.nan, 0))
            finite = math.isfinite(value)
            found[item.step // width] = (
                float(np.fmin(low, value)) if finite else low,
                float(np.fmax(high, value)) if finite else high,
                value,
                bad + (not finite),
            )
        return found


async def check_series(stores: Stores, expected: Expected, window: StepRange, points: int) -> None:
    found = await stores.series.read("run", ["loss", "accuracy"], step_from=window[0], step_to=window[1], points=points)
    for name in ("loss", "accuracy"):
        wanted = expected.series(name, window, found.bucket_steps)
        if name not in found.series:
            assert not wanted
            continue
        buckets = found.series[name]
        assert len(buckets.numbers) <= points
        assert buckets.numbers.tolist() == sorted(wanted)
        for at, number in enumerate(buckets.numbers.tolist()):
            row = (buckets.min[0, at], buckets.max[0, at], buckets.last[0, at], buckets.counts()[0, at])
            np.testing.assert_array_equal(row, wanted[number])


async def check_heatmap(stores: Stores, expected: Expected, window: StepRange, columns: int) -> None:
    how: tuple[Reduce, ...] = ("max", "min", "last")
    for reduce in how:
        found = await stores.heatmap.read(
            "run",
            "grad_norm",
            step_from=window[0],
            step_to=window[1],
            columns=columns,
            reduce=reduce,
        )
        assert found.layers == ["first", "second"]
        assert found.z.shape == (2, len(found.step))
        assert len(found.step) <= columns
        z = np.full(found.z.shape, np.nan, dtype=np.float32)
        bad = np.zeros(found.z.shape, dtype=int)
        for item in expected.inside(window):
            if item.block is None:
                continue
            at = item.step // found.bucket_steps - int(found.step[0]) // found.bucket_steps
            for row, value in enumerate(np.frombuffer(item.block, "<f4").reshape(2, 2)[:, 0]):
                if np.isnan(value):
                    continue
                bad[row, at] += np.isinf(value)
                if reduce == "last":
                    z[row, at] = value
                elif np.isfinite(value):
                    z[row, at] = (np.fmax if reduce == "max" else np.fmin)(z[row, at], value)
        z = np.where(np.isnan(z) & (bad > 0), np.float32(np.inf), z)
        np.testing.assert_array_equal(found.z, z)
        assert {(row, at): count for row, at, count in found.nonfinite} == {
            (row, at): bad[row, at] for row, at in zip(*np.nonzero(bad), strict=True)
        }
