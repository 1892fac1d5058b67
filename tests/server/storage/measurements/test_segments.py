"""Commits store records exactly once and assign attempts."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select

from server.errors import LayoutChangedError, ProjectMismatchError, SequenceMovedError, WriterTakenError
from server.models import RunState
from server.pyramid.columns import Payload
from server.schema import attempts, segments, writers
from tests.server.storage.conftest import Stores
from tests.support.writer import LAYOUT, record


async def _steps(stores: Stores) -> list[tuple[int, list[int]]]:
    """Return (attempt, steps) of every segment, in the order of the commits."""
    async with stores.database.read() as connection:
        rows = await connection.execute(select(segments).order_by(segments.c.id))
        return [(row.attempt, Payload(row.payload).steps().tolist()) for row in rows]


async def test_a_commit_moves_the_sequence_and_a_stale_one_stores_nothing(stores: Stores) -> None:
    writer = await stores.register()
    await stores.commit(writer, 0, [record(0), record(1)])
    with pytest.raises(SequenceMovedError) as raised:
        await stores.commit(writer, 0, [record(0), record(1)])
    assert raised.value.last_seq == 2
    assert await _steps(stores) == [(0, [0, 1])]
    assert (await stores.register()).last_seq == 2


async def test_of_two_commits_at_once_one_is_stored(stores: Stores) -> None:
    writer = await stores.register()
    results = await asyncio.gather(
        *(stores.commit(writer, 0, [record(0), record(1)]) for _ in range(4)), return_exceptions=True
    )
    assert sum(isinstance(result, SequenceMovedError) for result in results) == 3
    assert await _steps(stores) == [(0, [0, 1])]


async def test_an_earlier_hello_can_neither_add_nor_end(stores: Stores) -> None:
    earlier = await stores.register()
    await stores.commit(earlier, 0, [record(0)])
    later = await stores.register()
    assert (later.last_seq, later.writer_id) == (1, earlier.writer_id)
    with pytest.raises(WriterTakenError):
        await stores.commit(earlier, 1, [record(1), record(2)])  # the sequence is right, but the epoch is not
    await stores.commit(later, 1, [record(1)])
    with pytest.raises(WriterTakenError):
        await stores.commit(earlier, 2, [record(2)])
    with pytest.raises(WriterTakenError):
        await stores.runs.finish_writer("run", earlier.writer_id, RunState.CRASHED, 1_001.0, epoch=earlier.epoch)
    assert await stores.runs.state_of("run") == "running"
    assert await _steps(stores) == [(0, [0]), (0, [1])]
    ended = await stores.runs.finish_writer("run", later.writer_id, RunState.FINISHED, 1_002.0, epoch=later.epoch)
    assert ended is RunState.FINISHED


async def test_a_step_back_begins_an_attempt_and_is_reported(stores: Stores) -> None:
    writer = await stores.register()
    commit = await stores.commit(writer, 0, [record(5), record(6), record(3), record(4)])
    assert commit.attempt == 1
    assert [(event.kind, event.step, event.detail) for event in commit.events] == [("rollback", 3, {"from_step": 6})]
    assert await _steps(stores) == [(0, [5, 6]), (1, [3, 4])]


async def test_repeating_a_step_is_not_a_step_back(stores: Stores) -> None:
    writer = await stores.register()
    await stores.commit(writer, 0, [record(5)])
    commit = await stores.commit(writer, 1, [record(5, accuracy=0.5), record(6)])
    assert (commit.attempt, commit.events) == (0, ())


async def test_a_new_writer_of_a_rank_continues_its_attempts(stores: Stores) -> None:
    await stores.commit(await stores.register(writer="one"), 0, [record(0), record(9)])
    commit = await stores.commit(await stores.register(writer="two"), 0, [record(4)])
    assert commit.attempt == 1
    async with stores.database.read() as connection:
        rows = await connection.execute(select(attempts).order_by(attempts.c.attempt))
        assert [(row.attempt, row.first_step, row.last_step) for row in rows] == [(0, 0, 9), (1, 4, 4)]


async def test_ranks_have_attempts_of_their_own(stores: Stores) -> None:
    await stores.commit(await stores.register(writer="zero", rank=0), 0, [record(100)])
    commit = await stores.commit(await stores.register(writer="one", rank=1), 0, [record(1)])
    assert commit.attempt == 0


async def test_a_layout_never_changes(stores: Stores) -> None:
    await stores.register()
    with pytest.raises(LayoutChangedError):
        await stores.register(layouts=(type(LAYOUT)(id=0, layers=("other",), statistics=LAYOUT.statistics),))


async def test_a_run_stays_in_its_project(stores: Stores) -> None:
    from client_sdk.protocol import Hello

    await stores.register()
    with pytest.raises(ProjectMismatchError):
        await stores.runs.register(Hello(version=1, run_id="run", writer="w", project="another"), 1.0)


async def test_a_writer_whose_run_the_server_named_finds_it_again(stores: Stores) -> None:
    from client_sdk.protocol import Hello

    hello = Hello(version=1, run_id=None, writer="unique", project="project")
    first = await stores.runs.register(hello, 1.0)
    again = await stores.runs.register(hello, 2.0)
    assert first.run_id == again.run_id
    async with stores.database.read() as connection:
        assert len((await connection.execute(select(writers))).all()) == 1


async def test_states_follow_the_newest_writer_of_each_rank(stores: Stores) -> None:

    old = await stores.register(writer="old")
    new = await stores.register(writer="new")
    other = await stores.register(writer="other", rank=1)
    assert await stores.runs.finish_writer("run", new.writer_id, RunState.FINISHED, 2_000.0) is RunState.RUNNING
    assert await stores.runs.finish_writer("run", other.writer_id, RunState.CRASHED, 2_001.0) is RunState.CRASHED
    assert await stores.runs.state_of("run") == "crashed"
    assert old.last_seq == 0
    await stores.register(writer="new")
    assert await stores.runs.state_of("run") == "running"


async def test_a_silent_run_becomes_stale_and_a_heartbeat_prevents_it(stores: Stores) -> None:
    silent = await stores.register("silent", "one")
    alive = await stores.register("alive", "two")
    await stores.runs.heartbeat([alive.writer_id], 2_000.0)
    assert await stores.runs.mark_stale(1_500.0) == ["silent"]
    assert await stores.runs.mark_stale(1_500.0) == []
    assert await stores.runs.state_of(silent.run_id) == "stale"
    assert await stores.runs.state_of(alive.run_id) == "running"
