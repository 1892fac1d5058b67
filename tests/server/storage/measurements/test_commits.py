"""Commits of several runs in one transaction behave as if each were alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy import event, select, update

from client_sdk.protocol import Record
from server.errors import DatabaseBusyError, RunDeletedError, SequenceMovedError, WriterTakenError
from server.models import DELETING
from server.pipeline.packing import pack
from server.pyramid.columns import Payload
from server.schema import runs, scalars, segments, writers
from server.storage.database import Database
from server.storage.measurements.commits import Commit, CommitRequest
from server.storage.runs import Registration
from tests.server.storage.conftest import Stores
from tests.support.writer import record


def request(writer: Registration, after: int, records: Sequence[Record], known: frozenset[str]) -> CommitRequest:
    return CommitRequest(
        writer=writer,
        expected_seq=after,
        drafts=pack(after + 1, records, writer.layouts, {0: 2}),
        now=1_000.0,
        known_names=known,
    )


def asked(writer: Registration, after: int, *steps: int) -> CommitRequest:
    return request(writer, after, [record(step) for step in steps], frozenset())


async def stored_steps(stores: Stores) -> dict[str, list[int]]:
    """Return the committed steps of each run, in the order of the commits."""
    found: dict[str, list[int]] = {}
    async with stores.database.read() as connection:
        for row in await connection.execute(select(segments).order_by(segments.c.id)):
            found.setdefault(row.run_id, []).extend(Payload(row.payload).steps().tolist())
    return found


async def statements(stores: Stores, requests: Sequence[CommitRequest]) -> int:
    """Return the number of statements sent in one transaction."""
    count = 0

    def sent(*_: object) -> None:
        nonlocal count
        count += 1

    engine = stores.database.writing.sync_engine
    event.listen(engine, "before_cursor_execute", sent)
    try:
        assert all(isinstance(found, Commit) for found in await stores.commits.commit(requests))
    finally:
        event.remove(engine, "before_cursor_execute", sent)
    return count


async def test_a_refused_request_affects_no_other(stores: Stores) -> None:
    good = await stores.register("good", "a")
    taken = await stores.register("taken", "b")
    await stores.register("taken", "b")
    moved = await stores.register("moved", "c")
    await stores.commit(moved, 0, [record(0)])
    deleted = await stores.register("deleted", "d")
    gone = await stores.register("gone", "e")
    async with stores.database.write() as connection:
        await connection.execute(update(runs).where(runs.c.id == "deleted").values(state=DELETING))
        await connection.execute(runs.delete().where(runs.c.id == "gone"))
    requests = [asked(writer, 0, 1, 2) for writer in (deleted, taken, good, moved, gone)]
    outcomes = await stores.commits.commit(requests)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [RunDeletedError, WriterTakenError, Commit, SequenceMovedError, RunDeletedError]
    assert await stored_steps(stores) == {"moved": [0], "good": [1, 2]}


async def test_two_requests_of_one_writer_are_stored_once(stores: Stores) -> None:
    writer = await stores.register()
    first, again, following = await stores.commits.commit(
        [asked(writer, 0, 0, 1), asked(writer, 0, 0, 1), asked(writer, 2, 2)]
    )
    assert isinstance(first, Commit)
    assert isinstance(again, SequenceMovedError)
    assert again.last_seq == 2
    assert isinstance(following, Commit)
    assert following.segments[0].previous_id == first.segments[-1].id
    assert await stored_steps(stores) == {"run": [0, 1, 2]}
    assert (await stores.register()).last_seq == 3


async def test_a_step_back_in_one_run_is_its_own(stores: Stores) -> None:
    back, on = await stores.register("back", "a"), await stores.register("on", "b")
    await stores.commits.commit([asked(back, 0, 5), asked(on, 0, 5)])
    first, second = await stores.commits.commit([asked(back, 1, 3, 4), asked(on, 1, 6)])
    assert isinstance(first, Commit)
    assert isinstance(second, Commit)
    assert (first.attempt, [one.kind for one in first.events]) == (1, ["rollback"])
    assert (second.attempt, second.events) == (0, ())


async def test_a_segment_names_the_one_before_it_whoever_committed_that(stores: Stores) -> None:
    early, late = await stores.register(writer="early"), await stores.register(writer="late")
    other = await stores.register(writer="other", rank=1)
    first = await stores.commit(early, 0, [record(0)])
    await stores.commit(other, 0, [record(0)])
    second = await stores.commit(late, 0, [record(1)])
    third = await stores.commit(early, 1, [record(2), record(1)])
    assert first.segments[0].previous_id == 0
    assert second.segments[0].previous_id == first.segments[0].id
    assert [stored.previous_id for stored in third.segments] == [second.segments[0].id, third.segments[0].id]


async def test_a_hundred_commits_take_the_statements_of_one(stores: Stores) -> None:
    known = [await stores.register(f"run{number}", f"w{number}") for number in range(20)]
    for writer in known:
        await stores.commit(writer, 0, [record(0)])
    names = frozenset({"loss"})
    one = await statements(stores, [request(known[0], 1, [record(1)], names)])
    many = await statements(stores, [request(writer, 1, [record(1)], names) for writer in known[1:]])
    assert many <= one + 1  # the additional statement sets the lock timeout


async def test_a_name_is_noted_once_for_each_rank(stores: Stores) -> None:
    writers_of = [await stores.register(writer=str(rank), rank=rank) for rank in range(2)]
    await stores.commits.commit([asked(writer, 0, 0) for writer in writers_of])
    await stores.commits.commit([asked(writer, 1, 1) for writer in writers_of])
    async with stores.database.read() as connection:
        rows = await connection.execute(select(scalars.c.rank, scalars.c.name).order_by(scalars.c.rank))
        assert [tuple(row) for row in rows] == [(0, "loss"), (1, "loss")]


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_many_at_once_do_not_wait_long_for_a_row_that_another_server_holds(database: Database) -> None:
    stores = Stores.over(database)
    held, free = await stores.register("held", "a"), await stores.register("free", "b")
    async with database.write() as holder:
        await holder.execute(select(writers.c.id).where(writers.c.id == held.writer_id).with_for_update())
        with pytest.raises(DatabaseBusyError):
            await stores.commits.commit([asked(held, 0, 0), asked(free, 0, 0)])
        (outcome,) = await stores.commits.commit([asked(free, 0, 0)])
        assert isinstance(outcome, Commit)
        alone = asyncio.create_task(stores.commits.commit([asked(held, 0, 0)]))
    assert isinstance((await alone)[0], Commit)
    assert await stored_steps(stores) == {"free": [0], "held": [0]}
