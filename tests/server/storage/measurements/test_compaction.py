"""Compaction: no step of it, and no interruption of it, changes the result of a query."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from sqlalchemy import func, select, text, update

from client_sdk.protocol import MAX_STEP, Layout, Record
from server.errors import TileCorruptError
from server.models import RunState
from server.pipeline.packing import pack
from server.pyramid.tiles import FAN_IN
from server.schema import monitors, segments, spans, tiles, writers
from server.storage.database import Database
from server.storage.measurements.compaction import Compactor, build_spans
from server.storage.measurements.history import HistoryReader
from server.storage.measurements.integrity import Doctor
from server.storage.measurements.spans import SpanStore
from tests.server.storage.conftest import Stores
from tests.server.storage.measurements.oracle import VALUES, Expected, batches, check_heatmap, check_series, visible
from tests.support.writer import LAYOUT, record

SMALL_SPAN = 4  # records, so that few records form many levels


async def read_everything(database: Database, run_id: str = "run", rank: int = 0) -> None:
    """Mark everything as read by the detectors, which is what the compaction waits for."""
    async with database.write() as connection:
        newest = (await connection.execute(select(func.max(segments.c.id)))).scalar_one() or 0
        await connection.execute(monitors.delete().where(monitors.c.run_id == run_id))
        await connection.execute(
            monitors.insert().values(run_id=run_id, rank=rank, position=newest, state=b"", saved_at=0.0)
        )


def compactor(database: Database, entries: int = SMALL_SPAN) -> Compactor:
    return Compactor(SpanStore(database), 1.0, span_entries=lambda layers: entries)


async def levels(database: Database) -> dict[int, int]:
    """Return the number of spans at each level."""
    async with database.read() as connection:
        rows = await connection.execute(select(spans.c.level, func.count()).group_by(spans.c.level))
        return {row.level: row[1] for row in rows}


async def segment_count(database: Database) -> int:
    async with database.read() as connection:
        return (await connection.execute(select(func.count()).select_from(segments))).scalar_one()


async def store(stores: Stores, given_batches: Sequence[Sequence[Record]]) -> None:
    async with stores.database.write() as connection:
        await connection.execute(text("DELETE FROM runs"))
    writer = await stores.register()
    last = 0
    for batch in given_batches:
        last = (await stores.commit(writer, last, batch)).last_seq


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches(),
    st.integers(1, 40),
    st.tuples(st.integers(0, 160), st.integers(0, 160)),
    st.tuples(st.integers(1, 6), st.booleans()),
)
async def test_tiles_answer_as_the_records_do_at_every_zoom(
    database: Database,
    given_batches: list[list[Record]],
    points: int,
    zoom: tuple[int, int],
    how: tuple[int, bool],
) -> None:
    entries, has_ended = how
    stores = Stores.over(database)
    half = len(given_batches) // 2
    await store(stores, given_batches[:half])
    await read_everything(database)
    if has_ended:
        writer = await stores.register()
        await stores.runs.finish_writer("run", writer.writer_id, RunState.FINISHED, 1.0)
    await compactor(database, entries).run_once()
    writer = await stores.register()
    last = writer.last_seq
    for batch in given_batches[half:]:
        last = (await stores.commit(writer, last, batch)).last_seq
    await read_everything(database)
    expected = Expected([item for batch in given_batches for item in batch])
    for _ in range(2):
        for window in ((None, None), (zoom[0], sum(zoom))):
            await check_series(stores, expected, window, points)
            await check_heatmap(stores, expected, window, points)
        await compactor(database, entries).run_once()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VALUES, min_size=150, max_size=150), st.integers(1, 5), st.data())
async def test_zooming_in_never_loses_an_extreme(
    database: Database, losses: list[float], stride: int, data: st.DataObject
) -> None:
    stores = Stores.over(database)
    records = [record(stride * at, loss) for at, loss in enumerate(losses)]
    await store(stores, [records[at : at + 10] for at in range(0, len(records), 10)])
    await read_everything(database)
    await compactor(database, 2).run_once()
    assert max(await levels(database)) >= 2
    first, last = 0, stride * len(losses)
    outer = await _extremes(stores, first, last, 7)
    while last - first > 1:
        middle = data.draw(st.integers(first, last - 1))
        left, right = await _extremes(stores, first, middle, 7), await _extremes(stores, middle + 1, last, 7)
        assert outer == (np.fmin(left[0], right[0]), np.fmax(left[1], right[1])) or all(map(math.isnan, outer))
        first, last, outer = (first, middle, left) if data.draw(st.booleans()) else (middle + 1, last, right)
        if any(map(math.isnan, outer)):
            return


async def _extremes(stores: Stores, first: int, last: int, points: int) -> tuple[float, float]:
    found = await stores.series.read("run", ["loss"], step_from=first, step_to=last, points=points)
    if "loss" not in found.series:
        return math.nan, math.nan
    low, high = found.series["loss"].min, found.series["loss"].max
    return float(np.fmin.reduce(low[0])), float(np.fmax.reduce(high[0]))


async def test_full_levels_are_merged_and_the_segments_are_gone(stores: Stores) -> None:
    steps = range(SMALL_SPAN * FAN_IN**2)
    records = [record(step, block=[[step, 1], [2, 3]]) for step in steps]
    await store(stores, [records[at : at + SMALL_SPAN] for at in steps[::SMALL_SPAN]])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    assert await levels(stores.database) == {0: FAN_IN**2, 1: FAN_IN, 2: 1}
    assert await segment_count(stores.database) == 0
    async with stores.database.read() as connection:
        widths = {row.level: row.width for row in await connection.execute(select(spans.c.level, spans.c.width))}
    assert widths == {0: 1, 1: 8, 2: 64}
    whole = await stores.heatmap.read("run", "grad_norm", step_from=None, step_to=None, columns=4, reduce="max")
    assert whole.z[0].tolist() == [63.0, 127.0, 191.0, 255.0]


async def test_the_tail_of_a_running_writer_stays_in_segments_until_it_ends(stores: Stores) -> None:
    await store(stores, [[record(step)] for step in range(SMALL_SPAN + 2)])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    assert await segment_count(stores.database) == 2
    writer = await stores.register()
    await stores.runs.finish_writer("run", writer.writer_id, "finished", 1.0)  # type: ignore[arg-type]
    await compactor(stores.database).run_once()
    assert await segment_count(stores.database) == 0
    assert await levels(stores.database) == {0: 2, 1: 1}


async def test_the_last_value_of_a_bucket_that_two_levels_share_is_the_later_one(stores: Stores) -> None:
    """The edge comes from a span that began after the one above it, but was measured before it."""
    count = SMALL_SPAN * FAN_IN
    records = [record(step, float(step), block=[[step, 1], [2, 3]]) for step in range(count)]
    await store(stores, [records])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    for first in range(count // 2):
        await check_heatmap(stores, Expected(records), (first, count - 1), 3)
        await check_series(stores, Expected(records), (first, count - 1), 3)


async def test_the_last_spans_of_an_ended_writer_are_put_under_others(stores: Stores) -> None:
    """A query must read no more spans of a run that ended anywhere than of one that ended with full levels."""
    count = SMALL_SPAN * (FAN_IN**2 + 3 * FAN_IN + 2)
    records = [record(step, float(step % 13), block=[[step, 1], [2, 3]]) for step in range(count + SMALL_SPAN)]
    await store(stores, [records[:count]])
    await read_everything(stores.database)
    writer = await stores.register()
    await stores.runs.finish_writer("run", writer.writer_id, RunState.FINISHED, 1.0)
    await compactor(stores.database).run_once()
    roots = await SpanStore(stores.database).roots("run")
    assert [(root.level, root.first_seq, root.last_seq) for root in roots] == [(3, 1, count)]
    for columns in (3, 20, 1_000):
        await check_series(stores, Expected(records[:count]), (None, None), columns)
        await check_heatmap(stores, Expected(records[:count]), (5, count - 3), columns)
    # The writer continues after all.
    writer = await stores.register()
    await stores.commit(writer, count, records[count:])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    for columns in (3, 20, 1_000):
        await check_series(stores, Expected(records), (None, None), columns)


async def test_scalars_that_come_and_go_are_read_as_they_were_logged(stores: Stores) -> None:
    """There are more scalars than fit into a tile, each in some of the records, one of them as NaN."""
    noise = np.random.default_rng(5)
    names = [f"metric{number:03}" for number in range(150)]
    records = []
    for step in range(SMALL_SPAN * FAN_IN + 3):
        chosen = noise.choice(names, 40, replace=False).tolist() if step % 3 else names[:100]
        extra = {name: math.nan if noise.random() < 0.1 else float(noise.normal()) for name in chosen}
        records.append(structs.replace(record(step), scalars={"loss": float(step), **extra}))
    await store(stores, [records])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    expected = Expected(records)
    for points in (1, 5, 1_000):
        asked = ["loss", *(str(name) for name in noise.choice(names, 30, replace=False))]
        found = await stores.series.read("run", asked, step_from=None, step_to=None, points=points)
        for name in asked:
            wanted = expected.series(name, (None, None), found.bucket_steps)
            buckets = found.series[name]
            assert buckets.numbers.tolist() == sorted(wanted)
            for at, number in enumerate(buckets.numbers.tolist()):
                row = (buckets.min[0, at], buckets.max[0, at], buckets.last[0, at], buckets.counts()[0, at])
                np.testing.assert_array_equal(row, wanted[number])
    logged: dict[str, list[float]] = {}
    async for piece in HistoryReader(stores.database).pieces("run"):
        for name, column in piece.columns.scalars.items():
            logged.setdefault(name, []).extend(column.values.tolist())
    for name in names:
        np.testing.assert_array_equal(logged[name], [item.scalars[name] for item in records if name in item.scalars])


async def test_what_the_detectors_have_not_read_stays_in_segments(stores: Stores) -> None:
    await store(stores, [[record(step)] for step in range(SMALL_SPAN)])
    await read_everything(stores.database)
    writer = await stores.register()
    for step in range(SMALL_SPAN, 4 * SMALL_SPAN):
        await stores.commit(writer, step, [record(step)])
    await compactor(stores.database).run_once()
    assert await levels(stores.database) == {0: 1}
    assert await segment_count(stores.database) == 3 * SMALL_SPAN


async def test_a_rank_that_the_detectors_do_not_read_is_compacted_too(stores: Stores) -> None:
    await stores.commit(await stores.register(writer="zero"), 0, [record(0)])
    one = await stores.register(writer="one", rank=1)
    await stores.commit(one, 0, [record(step) for step in range(SMALL_SPAN)])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    assert await segment_count(stores.database) == 1


async def test_two_compactors_at_once_write_each_step_once(stores: Stores) -> None:
    await store(stores, [[record(step + at, float(step + at)) for at in range(2)] for step in range(0, 100, 2)])
    await read_everything(stores.database)
    span_store = SpanStore(stores.database)
    (group,) = await span_store.compactable()
    taken = await span_store.oldest_segments(group, SMALL_SPAN)
    await compactor(stores.database).run_once()
    assert not await span_store.replace_segments(group, taken, build_spans(taken, SMALL_SPAN))
    roots = await span_store.roots("run")
    children = [root for root in roots if root.level == 0]
    draft = await compactor(stores.database).draft_above(children)
    assert await span_store.put_above("run", children, draft)
    assert not await span_store.put_above("run", children, draft)
    assert await levels(stores.database) == {0: 25, 1: 4}
    found = await stores.series.read("run", ["loss"], step_from=None, step_to=None, points=100)
    assert found.series["loss"].last[0].tolist() == [float(step) for step in range(100)]


async def test_a_run_deleted_under_the_compaction_is_left_alone(stores: Stores) -> None:
    await store(stores, [[record(step)] for step in range(10)])
    await read_everything(stores.database)
    span_store = SpanStore(stores.database)
    (group,) = await span_store.compactable()
    taken = await span_store.oldest_segments(group, SMALL_SPAN)
    async with stores.database.write() as connection:
        await connection.execute(text("DELETE FROM runs"))
    assert not await span_store.replace_segments(group, taken, build_spans(taken, SMALL_SPAN))
    assert await levels(stores.database) == {}
    async with stores.database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(tiles))).scalar_one() == 0


async def test_a_large_batch_becomes_spans_of_equal_size(stores: Stores) -> None:
    await store(stores, [[record(step, float(step)) for step in range(1_000)]])
    await read_everything(stores.database)
    await compactor(stores.database, 256).run_once()
    async with stores.database.read() as connection:
        sizes = (await connection.execute(select(spans.c.entries).order_by(spans.c.first_seq))).scalars().all()
    assert sum(sizes) == 1_000
    assert len(sizes) == 3
    assert max(sizes) - min(sizes) <= 1


async def test_sparse_logging_gets_wider_buckets_and_no_copies(stores: Stores) -> None:
    count = SMALL_SPAN * FAN_IN
    await store(stores, [[record(1_000 * at, float(at))] for at in range(count)])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    async with stores.database.read() as connection:
        row = (await connection.execute(select(spans).where(spans.c.level == 1))).one()
    assert row.entries <= 1.5 * SMALL_SPAN
    assert row.width >= 4_096
    found = await stores.series.read("run", ["loss"], step_from=None, step_to=None, points=10_000)
    assert found.series["loss"].last[0].tolist() == [float(at) for at in range(count)]


async def test_steps_may_be_as_great_as_they_come(stores: Stores) -> None:
    count = SMALL_SPAN * FAN_IN
    records = [record(at if at < count // 2 else MAX_STEP - count + at, float(at)) for at in range(count)]
    await store(stores, [records])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    for window in ((None, None), (3, MAX_STEP), (count, MAX_STEP - 2)):
        for points in (1, 7, 1_000):
            await check_series(stores, Expected(records), window, points)


async def test_a_statistic_that_is_measured_now_and_then_keeps_its_steps(stores: Stores) -> None:
    nan = math.nan
    rows = [[[float(step) if step % 10 == 0 else nan, 1.0], [nan, 2.0]] for step in range(64)]
    await store(stores, [[record(step, block=rows[step])] for step in range(64)])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    found = await stores.heatmap.read("run", "grad_norm", step_from=None, step_to=None, columns=64, reduce="last")
    assert [at for at, value in enumerate(found.z[0].tolist()) if not math.isnan(value)] == [0, 10, 20, 30, 40, 50, 60]
    assert np.isnan(found.z[1]).all()


async def test_a_layout_that_grows_is_compacted_with_the_old_one(stores: Stores) -> None:
    grown = Layout(id=1, layers=("first", "second", "third"), statistics=("grad_norm",))
    writer = await stores.register()
    await stores.commit(writer, 0, [record(step, block=[[1, 1], [2, 2]]) for step in range(8)])
    writer = await stores.register(layouts=(LAYOUT, grown))
    await stores.commit(writer, 8, [record(step, block=[[3], [4], [5]], layout=1) for step in range(8, 64)])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    found = await stores.heatmap.read("run", "grad_norm", step_from=None, step_to=None, columns=64, reduce="max")
    assert found.layers == ["first", "second", "third"]
    assert found.z[:, 7].tolist()[:2] == [1.0, 2.0]
    assert math.isnan(found.z[2, 7])
    assert found.z[:, 8].tolist() == [3.0, 4.0, 5.0]


@pytest.mark.parametrize("level", [0, 1, 2])
async def test_a_corrupt_tile_breaks_no_other_query(stores: Stores, level: int) -> None:
    await store(stores, [[record(step, float(step), block=[[step, 1], [2, 3]]) for step in range(SMALL_SPAN * 64)]])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    async with stores.database.write() as connection:
        number = (await connection.execute(select(func.min(spans.c.id)).where(spans.c.level == level))).scalar_one()
        damaged = tiles.c.last if level == 0 else tiles.c.greatest
        same = (tiles.c.span_id == number) & (tiles.c.name == "grad_norm")
        blob = (await connection.execute(select(damaged).where(same))).scalar_one()
        await connection.execute(update(tiles).where(same).values({damaged: blob[:-3] + b"\0\0\0"}))
    fresh = Stores.over(stores.database)
    last = SMALL_SPAN * 64 - 1
    for statistic, first in (("update_norm", 0), ("grad_norm", 2 * SMALL_SPAN)):
        found = await fresh.heatmap.read("run", statistic, step_from=first, step_to=last, columns=300, reduce="max")
        assert not np.isnan(found.z).any()
    series = await fresh.series.read("run", ["loss"], step_from=None, step_to=None, points=1_000)
    assert len(series.series["loss"].numbers) == SMALL_SPAN * 64
    if level == 0:
        with pytest.raises(TileCorruptError, match="'grad_norm'"):
            await fresh.heatmap.read("run", "grad_norm", step_from=0, step_to=3, columns=300, reduce="max")
        return
    width = 8**level
    whole = await fresh.heatmap.read(
        "run", "grad_norm", step_from=None, step_to=None, columns=(last + 1) // width, reduce="max"
    )
    assert whole.z[0].tolist() == [float(step) for step in range(width - 1, last + 1, width)]


def test_the_oracle_hides_what_an_attempt_replaced() -> None:
    assert [item.step for item in visible([record(1), record(5), record(3), record(4)])] == [1, 3, 4]


async def test_late_records_survive_the_compaction_and_stay_with_their_attempt(stores: Stores) -> None:
    """Late records interrupt the sequence of the training, so spans end there; nothing is lost or moved."""
    writer = await stores.register()
    records, late = [], []
    for step in range(40):
        records.append(record(step, block=[[1.0, 0.1], [2.0, 0.2]]))
        late.append(False)
        if step % 10 == 9:
            records.append(Record(step=step // 10, time=float(step), scalars={"val_loss": float(step)}))
            late.append(True)
    drafts = pack(1, records, writer.layouts, {0: len(LAYOUT.statistics)}, late)
    await stores.commit_drafts(writer, 0, drafts)
    await read_everything(stores.database)
    for _ in range(2):  # from segments, then from spans
        series = await stores.series.read("run", ["loss", "val_loss"], step_from=None, step_to=None, points=1_000)
        assert series.series["loss"].numbers.tolist() == list(range(40))
        assert series.series["val_loss"].numbers.tolist() == [0, 1, 2, 3]
        assert series.series["val_loss"].fields["last"].tolist() == [[9.0, 19.0, 29.0, 39.0]]
        pieces = [piece async for piece in HistoryReader(stores.database).pieces("run")]
        steps = [step for piece in pieces for step in piece.columns.steps.tolist()]
        assert steps == [item.step for item in records]
        assert {(piece.attempt, piece.is_late) for piece in pieces} == {(0, False), (0, True)}
        assert [damage async for damage in Doctor(stores.database).examine(repair=False)] == []
        async with stores.database.write() as connection:
            await connection.execute(update(writers).values(state=RunState.FINISHED))
        await compactor(stores.database).run_once()
    assert (await levels(stores.database))[0] > 0
    async with stores.database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(segments))).scalar_one() == 0
