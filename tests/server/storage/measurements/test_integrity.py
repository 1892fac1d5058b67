"""The doctor finds every kind of damage by name, and repairs what can be repaired."""

from __future__ import annotations

import asyncio

from sqlalchemy import delete, func, select, update

from server.schema import histograms, segments, spans, tiles
from server.storage.database import Database
from server.storage.measurements.histogram import HistogramQuery
from server.storage.measurements.integrity import Damage, Doctor
from server.storage.measurements.spans import SpanStore
from tests.server.storage.conftest import Stores
from tests.server.storage.measurements.oracle import Expected, check_heatmap, check_series
from tests.server.storage.measurements.test_compaction import SMALL_SPAN, compactor, read_everything, store
from tests.support.writer import histogram, record

COUNT = SMALL_SPAN * 64 + 3
RECORDS = [record(step, float(step % 17), block=[[step, 1], [2, 3]]) for step in range(COUNT)]


async def examine(database: Database, *, repair: bool = False) -> list[Damage]:
    return [damage async for damage in Doctor(database).examine(repair=repair)]


async def filled(stores: Stores) -> None:
    """Store spans of three levels and three segments."""
    await store(stores, [RECORDS[:-3], RECORDS[-3:-2], RECORDS[-2:-1], RECORDS[-1:]])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()


async def spoil(database: Database, level: int, name: str, column: str) -> int:
    """Change one byte of a tile of the first span of a level, and return the span's id."""
    async with database.write() as connection:
        number: int = (
            await connection.execute(select(func.min(spans.c.id)).where(spans.c.level == level))
        ).scalar_one()
        same = (tiles.c.span_id == number) & (tiles.c.name == name)
        blob = bytearray((await connection.execute(select(tiles.c[column]).where(same))).scalar_one())
        blob[-1] ^= 1
        await connection.execute(update(tiles).where(same).values({tiles.c[column]: bytes(blob)}))
        return number


async def test_a_sound_database_has_nothing_to_report(stores: Stores) -> None:
    assert await examine(stores.database) == []
    await filled(stores)
    assert await examine(stores.database) == []


async def test_a_damaged_level_is_rebuilt_from_the_one_below(stores: Stores) -> None:
    await filled(stores)
    for level, column in ((1, "greatest"), (2, "last")):
        number = await spoil(stores.database, level, "loss", column)
        (damage,) = await examine(stores.database)
        assert f"tile 'loss' of span {number} (level {level}, " in damage.where
        assert damage.run_id == "run"
        (repaired,) = await examine(stores.database, repair=True)
        assert "rebuilt" in repaired.remedy
        assert await examine(stores.database) == []
    fresh = Stores.over(stores.database)
    for points in (1, 7, 40, 1_000):
        await check_series(fresh, Expected(RECORDS), (None, None), points)
        await check_heatmap(fresh, Expected(RECORDS), (None, None), points)


async def test_damaged_values_are_marked_and_read_as_not_measured(stores: Stores) -> None:
    await filled(stores)
    before = await stores.runs.version_of("run")
    await spoil(stores.database, 0, "grad_norm", "last")
    (damage,) = await examine(stores.database, repair=True)
    assert "lost" in damage.remedy
    after = await stores.runs.version_of("run")
    assert before is not None
    assert after is not None
    assert after.version != before.version, "cached answers are invalid after the repair"
    assert await examine(stores.database) == []
    fresh = Stores.over(stores.database)
    raw = await fresh.heatmap.read("run", "grad_norm", step_from=0, step_to=7, columns=8, reduce="max")
    assert [value == value for value in raw.z[0].tolist()] == [False] * SMALL_SPAN + [True] * SMALL_SPAN
    coarse = await fresh.heatmap.read("run", "grad_norm", step_from=0, step_to=7, columns=1, reduce="max")
    assert coarse.z[0].tolist() == [7.0]
    await check_series(fresh, Expected(RECORDS), (None, None), 1_000)


async def test_damaged_segments_and_steps_lose_their_own_records_alone(stores: Stores) -> None:
    await filled(stores)
    async with stores.database.write() as connection:
        number = (await connection.execute(select(func.min(segments.c.id)))).scalar_one()
        await connection.execute(update(segments).where(segments.c.id == number).values(payload=b"no segment"))
        first = (await connection.execute(select(func.min(spans.c.id)))).scalar_one()
        await connection.execute(update(spans).where(spans.c.id == first).values(steps=b"no steps", times=b"no times"))
    found = await examine(stores.database)
    assert any(f"segment {number} " in damage.where for damage in found)
    assert any(f"steps of span {first} " in damage.where for damage in found)
    await examine(stores.database, repair=True)
    await examine(stores.database, repair=True)  # The times could not be checked before the steps were repaired.
    assert await examine(stores.database) == []
    fresh = Stores.over(stores.database)
    series = await fresh.series.read("run", ["loss"], step_from=None, step_to=None, points=1_000)
    steps = series.series["loss"].numbers.tolist()
    assert steps == [step for step in range(COUNT) if step >= SMALL_SPAN and step != COUNT - 3]


async def test_a_compaction_that_stopped_at_damage_goes_on_after_the_repair(stores: Stores) -> None:
    await store(stores, [[item] for item in RECORDS[: 4 * SMALL_SPAN]])
    await read_everything(stores.database)
    async with stores.database.write() as connection:
        number = (await connection.execute(select(func.min(segments.c.id)))).scalar_one()
        await connection.execute(update(segments).where(segments.c.id == number).values(payload=b"no segment"))
    worker = compactor(stores.database)
    assert [await worker.run_once() for _ in range(2)] == [0, 0]
    await examine(stores.database, repair=True)
    assert await worker.run_once() == 4
    assert await examine(stores.database) == []


async def test_a_run_with_a_damaged_tile_does_not_stop_the_compaction_of_others(stores: Stores) -> None:
    await filled(stores)
    async with stores.database.write() as connection:
        # This is the state after an interrupted compaction: the upper levels are missing.
        above = select(spans.c.id).where(spans.c.level > 0)
        await connection.execute(delete(spans).where(spans.c.id.in_(above)))
        await connection.execute(update(spans).values(parent_id=None))
    await spoil(stores.database, 0, "grad_norm", "last")
    worker = compactor(stores.database)
    running = asyncio.create_task(worker.run())
    other = await stores.register("other", "other")
    await stores.commit(other, 0, RECORDS[: 2 * SMALL_SPAN])
    await read_everything(stores.database, "other")
    async with asyncio.timeout(30):
        while not await SpanStore(stores.database).roots("other"):
            pass
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_records_that_are_missing_or_stored_twice_are_named(stores: Stores) -> None:
    await filled(stores)
    async with stores.database.write() as connection:
        number = (await connection.execute(select(func.min(segments.c.id)))).scalar_one()
        await connection.execute(delete(segments).where(segments.c.id == number))
        second = (await connection.execute(select(func.min(segments.c.id)))).scalar_one()
        await connection.execute(update(segments).where(segments.c.id == second).values(first_seq=COUNT - 4))
    found = [(damage.where.split(" of ")[0], damage.problem) for damage in await examine(stores.database)]
    assert (f"records {COUNT - 4} … {COUNT - 3}", "are stored twice") in found


async def test_damaged_histograms_are_named_and_removed(stores: Stores) -> None:
    writer = await stores.register("run")
    shapes = [histogram("update", [[at] * 64] * 2) for at in range(3)]
    await stores.commit(writer, 0, [record(at, histograms=(shapes[at],)) for at in range(3)])
    async with stores.database.write() as connection:
        await connection.execute(update(histograms).where(histograms.c.step == 1).values(payload=b"no histogram"))
    damaged = await examine(stores.database)
    assert [damage.where.split(" ", 2)[2] for damage in damaged] == ["(update at step 1)"]
    assert [damage.remedy for damage in await examine(stores.database, repair=True)] == ["it is lost"]
    assert await examine(stores.database) == []
    left = await HistogramQuery(stores.database).nearest("run", 0, "first", "update", 1)
    assert left is not None
    assert left.step in {0, 2}
