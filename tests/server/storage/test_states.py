"""State of a run for any order of its writers' hellos, records and ends."""

from __future__ import annotations

import asyncio

from sqlalchemy import select

from client_sdk.protocol import Hello, Layout
from server.models import RunState
from server.schema import runs
from server.storage.database import Database
from server.storage.runs import Registration
from tests.server.storage.conftest import Stores
from tests.support.writer import record


async def hello(stores: Stores, writer: str, now: float, *, rank: int = 0) -> Registration:
    return await stores.runs.register(Hello(version=1, run_id="run", writer=writer, project="project", rank=rank), now)


async def test_a_stale_run_comes_back_with_the_next_record(stores: Stores) -> None:
    writer = await hello(stores, "quiet", 0.0)
    assert await stores.runs.mark_stale(60.0) == ["run"]
    await stores.commit(writer, 0, [record(0)])
    assert await stores.runs.state_of("run") == "running"
    await stores.runs.heartbeat([writer.writer_id], 2_000.0)
    assert await stores.runs.mark_stale(1_500.0) == [], "its connection keeps the run alive again"


async def test_a_run_whose_ranks_were_all_stale_ends_with_the_last_of_them(stores: Stores) -> None:
    first, second = await hello(stores, "first", 0.0), await hello(stores, "second", 0.0, rank=1)
    await stores.runs.mark_stale(60.0)
    for writer in (first, second):
        await stores.commit(writer, 0, [record(0)])
    assert await stores.runs.finish_writer("run", first.writer_id, RunState.FINISHED, 2_000.0) is RunState.RUNNING
    assert await stores.runs.finish_writer("run", second.writer_id, RunState.FINISHED, 2_001.0) is RunState.FINISHED


async def test_what_a_dead_writer_left_does_not_end_the_run_that_goes_on(stores: Stores) -> None:
    dead = await hello(stores, "dead", 0.0)
    await hello(stores, "alive", 10.0)
    await stores.commit(dead, 0, [record(0)])
    assert await stores.runs.finish_writer("run", dead.writer_id, RunState.CRASHED, 11.0) is RunState.RUNNING


async def test_late_records_of_a_replaced_writer_do_not_keep_a_finished_run_alive(stores: Stores) -> None:
    replaced = await hello(stores, "replaced", 0.0)
    after = await hello(stores, "after", 10.0)
    await stores.commit(replaced, 0, [record(0)])
    assert await stores.runs.finish_writer("run", after.writer_id, RunState.FINISHED, 20.0) is RunState.FINISHED


async def test_a_delayed_hello_of_a_writer_that_has_ended_changes_no_state(stores: Stores) -> None:
    ended = await hello(stores, "ended", 0.0)
    await stores.runs.finish_writer("run", ended.writer_id, RunState.CRASHED, 1.0)
    after = await hello(stores, "after", 2.0)
    echo = await hello(stores, "ended", 3.0)
    assert echo.writer_id == ended.writer_id
    await stores.commit(echo, 0, [record(0)])
    assert await stores.runs.finish_writer("run", after.writer_id, RunState.FINISHED, 4.0) is RunState.FINISHED
    await stores.commit(await hello(stores, "ended", 5.0), 1, [record(1)])
    assert await stores.runs.state_of("run") == "finished"


async def test_what_another_machine_left_is_told_later_and_the_run_comes_back(stores: Stores) -> None:
    alive = await hello(stores, "alive", 0.0)
    left = await hello(stores, "left", 1.0)  # from an earlier start, sent by `sync` while the run continues
    assert await stores.runs.finish_writer("run", left.writer_id, RunState.CRASHED, 2.0) is RunState.CRASHED
    await stores.commit(alive, 0, [record(0)])
    assert await stores.runs.state_of("run") == "running"
    assert await stores.runs.finish_writer("run", alive.writer_id, RunState.FINISHED, 3_000.0) is RunState.FINISHED


async def test_ranks_that_end_at_once_end_the_run(stores: Stores) -> None:
    ranks = [await hello(stores, f"rank{rank}", 0.0, rank=rank) for rank in range(8)]
    await asyncio.gather(
        *(stores.runs.finish_writer("run", writer.writer_id, RunState.FINISHED, 1.0) for writer in ranks)
    )
    assert await stores.runs.state_of("run") == "finished"


async def test_hellos_commits_and_heartbeats_at_once_wait_for_each_other_in_one_order(stores: Stores) -> None:
    ranks = [await hello(stores, f"rank{rank}", 0.0, rank=rank) for rank in range(4)]

    async def train(rank: int, writer: Registration) -> None:
        for step in range(10):
            await stores.commit(writer, step, [record(step)])
            writer = await hello(stores, f"rank{rank}", 1.0, rank=rank)

    async def beat() -> None:
        for _ in range(20):
            await stores.runs.heartbeat([writer.writer_id for writer in ranks], 1.0)
            await stores.runs.mark_stale(0.5)

    await asyncio.gather(beat(), *(train(rank, writer) for rank, writer in enumerate(ranks)))
    assert await stores.runs.state_of("run") == "running"


async def test_a_hello_that_brings_nothing_new_leaves_the_run_alone(database: Database) -> None:
    """The counts are computed from the layouts of all writers, which a reconnect must not repeat."""
    stores = Stores.over(database)
    layout = Layout(id=0, layers=("a", "b"), statistics=("grad_norm",), sizes=(3, 4))
    await stores.register(layouts=(layout,))
    async with database.write() as connection:
        await connection.execute(runs.update().values(layer_count=77))
    again = await stores.register(layouts=(layout,))
    assert set(again.layouts) == {0}
    assert await counts(database) == (77, 1)
    wider = Layout(id=1, layers=("c",), statistics=("grad_norm",), sizes=(5,))
    await stores.register(layouts=(layout, wider))
    assert await counts(database) == (3, 1)
    await stores.register(writer="other", rank=1, layouts=())
    assert await counts(database) == (3, 2)


async def counts(database: Database) -> tuple[int, int]:
    """Return the numbers of layers and of ranks of the only run."""
    async with database.read() as connection:
        row = (await connection.execute(select(runs.c.layer_count, runs.c.rank_count))).one()
        return row.layer_count, row.rank_count


async def test_heartbeats_of_several_servers_for_the_same_runs_do_not_deadlock(
    stores: Stores,
) -> None:
    names = [f"run{number}" for number in range(8)]
    greetings = [
        Hello(version=1, run_id=name, writer=f"{name}-{rank}", project="project", rank=rank)
        for rank in range(2)
        for name in names
    ]
    registered = [await stores.runs.register(greeting, 0.0) for greeting in greetings]
    here, there = registered[:8], registered[8:][::-1]

    async def beat(ours: list[Registration]) -> None:
        for number in range(15):
            await stores.runs.heartbeat([writer.writer_id for writer in ours], float(number))
            await stores.runs.mark_stale(number + 0.5)

    async def train(writer: Registration) -> None:
        for step in range(8):
            await stores.commit(writer, step, [record(step)])

    await asyncio.gather(beat(here), beat(there), *(train(writer) for writer in registered[::3]))
    await stores.runs.mark_stale(2_000.0)
    assert {await stores.runs.state_of(name) for name in names} == {"stale"}
