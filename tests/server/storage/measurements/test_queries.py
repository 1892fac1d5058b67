"""Series and heatmaps of stored segments, compared with numbers computed from the same records."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from client_sdk.protocol import Layout, Record
from server.storage.database import Database
from tests.server.storage.conftest import Stores
from tests.server.storage.measurements.oracle import Expected, batches, check_heatmap, check_series
from tests.support.writer import LAYOUT, record


async def _clear(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(text("DELETE FROM runs"))


async def _store(stores: Stores, given_batches: Sequence[Sequence[Record]]) -> None:
    await _clear(stores.database)
    writer = await stores.register()
    last = 0
    for batch in given_batches:
        last = (await stores.commit(writer, last, batch)).last_seq


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches(), st.integers(1, 40), st.integers(0, 120), st.integers(0, 120))
async def test_series_are_exact_at_every_zoom(
    database: Database, given_batches: list[list[Record]], points: int, start: int, length: int
) -> None:
    stores = Stores.over(database)
    await _store(stores, given_batches)
    expected = Expected([item for batch in given_batches for item in batch])
    for _ in range(2):  # first from the segments, then from the caches
        for window in ((None, None), (start, start + length)):
            await check_series(stores, expected, window, points)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches(), st.integers(1, 40), st.integers(0, 120), st.integers(0, 120))
async def test_heatmaps_are_exact_at_every_zoom(
    database: Database, given_batches: list[list[Record]], columns: int, start: int, length: int
) -> None:
    stores = Stores.over(database)
    await _store(stores, given_batches)
    expected = Expected([item for batch in given_batches for item in batch])
    for _ in range(2):
        await check_heatmap(stores, expected, (start, start + length), columns)


async def test_one_spike_among_many_steps_is_shown_at_every_zoom(stores: Stores) -> None:
    writer = await stores.register()
    last = 0
    for first in range(0, 6_000, 1_000):
        batch = [record(step, 50.0 if step == 3_217 else 1.0) for step in range(first, first + 1_000)]
        last = (await stores.commit(writer, last, batch)).last_seq
    for points in (1, 2, 10, 100, 1_000, 6_000):
        found = await stores.series.read("run", ["loss"], step_from=None, step_to=None, points=points)
        buckets = found.series["loss"]
        assert buckets.max.max() == 50.0
        at = int(buckets.max[0].argmax())
        assert buckets.numbers[at] == 3_217 // found.bucket_steps


async def test_what_is_committed_after_a_query_is_in_the_next_one(stores: Stores) -> None:
    writer = await stores.register()
    for last in range(40):
        await stores.commit(writer, last, [record(last, float(last))])
        found = await stores.series.read("run", ["loss"], step_from=None, step_to=None, points=1)
        assert found.series["loss"].last[0, -1] == float(last)
    await stores.commit(writer, 40, [record(5, -1.0)])
    found = await stores.series.read("run", ["loss"], step_from=None, step_to=None, points=100)
    assert found.series["loss"].last[0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, -1.0]
    whole = await stores.series.read("run", ["loss"], step_from=None, step_to=None, points=100, attempt=0)
    assert whole.series["loss"].last[0].tolist() == [float(step) for step in range(40)]


async def test_ranks_are_stacked_and_a_series_is_found_where_it_is_logged(stores: Stores) -> None:
    last = Layout(id=0, layers=("head",), statistics=("grad_norm",))
    zero = await stores.register(writer="zero", rank=0)
    one = await stores.register(writer="one", rank=1, layouts=(last,))
    await stores.commit(
        zero, 0, [Record(step=0, time=0.0, scalars={"lr": 0.1}, layout=0, block=_block([[1, 2], [3, 4]]))]
    )
    await stores.commit(one, 0, [record(0, 7.0, block=[[5.0]])])
    heatmap = await stores.heatmap.read("run", "grad_norm", step_from=None, step_to=None, columns=10, reduce="max")
    assert heatmap.layers == ["rank0/first", "rank0/second", "rank1/head"]
    assert heatmap.z[:, 0].tolist() == [1.0, 3.0, 5.0]
    series = await stores.series.read("run", ["loss", "lr"], step_from=None, step_to=None, points=10)
    assert series.series["loss"].max[0].tolist() == [7.0]
    assert series.series["lr"].max[0].tolist() == [0.1]


async def test_a_layer_that_a_restart_brings_back_stays_one_row(stores: Stores) -> None:
    grown = Layout(id=0, layers=("second", "third"), statistics=("grad_norm", "update_norm"))
    await stores.commit(await stores.register(writer="a"), 0, [record(0, block=[[1, 1], [2, 2]])])
    await stores.commit(await stores.register(writer="b", layouts=(grown,)), 0, [record(1, block=[[3, 3], [4, 4]])])
    heatmap = await stores.heatmap.read("run", "grad_norm", step_from=None, step_to=None, columns=10, reduce="last")
    assert heatmap.layers == ["first", "second", "third"]
    np.testing.assert_array_equal(heatmap.z, [[1, np.nan], [2, 3], [np.nan, 4]])


async def test_an_empty_range_is_an_empty_answer(stores: Stores) -> None:
    writer = await stores.register()
    empty = await stores.series.read("run", ["loss"], step_from=None, step_to=None, points=10)
    assert empty.series == {}
    await stores.commit(writer, 0, [record(10)])
    later = await stores.series.read("run", ["loss"], step_from=500, step_to=600, points=10)
    assert (later.step_from, later.step_to, later.series) == (500, 600, {})
    heatmap = await stores.heatmap.read("run", "grad_norm", step_from=500, step_to=600, columns=10, reduce="max")
    assert heatmap.z.shape == (len(LAYOUT.layers), 0)


async def test_the_greatest_possible_step_can_be_read(stores: Stores) -> None:
    writer = await stores.register()
    await stores.commit(writer, 0, [record(0, 1.0), record(2**63 - 1, 2.0)])
    found = await stores.series.read("run", ["loss"], step_from=None, step_to=None, points=1_000)
    assert found.series["loss"].max[0].tolist() == [1.0, 2.0]


def _block(rows: list[list[float]]) -> bytes:
    return np.array(rows, dtype="<f4").tobytes()


async def test_a_query_cancelled_anywhere_leaves_the_database_usable(stores: Stores) -> None:
    """There are more cancelled queries than connections."""
    await _store(stores, [[record(step, float(step), block=[[step, 1], [2, 3]]) for step in range(20)]])
    for moment in range(40):
        reading = asyncio.create_task(
            Stores.over(stores.database).heatmap.read(
                "run", "grad_norm", step_from=None, step_to=None, columns=20, reduce="max"
            )
        )
        for _ in range(moment):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    found = await stores.heatmap.read("run", "grad_norm", step_from=None, step_to=None, columns=20, reduce="max")
    assert found.z[0].tolist() == [float(step) for step in range(20)]
