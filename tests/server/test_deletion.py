"""A deleted run is hidden at once, and its rows and their space are removed soon."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select, text

from client_sdk.protocol import Error
from server.auth.tokens import digest_of
from server.errors import RunDeletedError
from server.models import DELETING, RunState, Scope
from server.pipeline.deletion import DAY, Deleter
from server.schema import metadata, runs
from server.storage.database import Database
from server.storage.deletion import DeletionStore
from server.storage.layouts import register_layouts
from server.storage.tokens import TokenStore
from tests.server.storage.conftest import Stores
from tests.support.postgres import Postgres
from tests.support.server import RunningServer, running_server
from tests.support.writer import LAYOUT, Writer, histogram, record


def deleter(database: Database, *, now: float = 0.0, days: float = 0.0) -> Deleter:
    return Deleter(
        DeletionStore(database), forget=lambda _: None, clock=lambda: now, retention_days=days, look_every=3600.0
    )


async def fill(stores: Stores, run_id: str) -> None:
    writer = await stores.register(run_id, writer=f"writer of {run_id}")
    for at in range(100):
        await stores.commit(
            writer, at, [record(at, block=[[1, 2], [3, 4]], histograms=(histogram("update", [[1] * 64] * 2),))]
        )


async def rows(database: Database) -> dict[str, int]:
    """Return the number of rows of each table except that of rules, which belong to no run."""
    async with database.read() as connection:
        counts = {
            table.name: (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            for table in metadata.sorted_tables
        }
    return {name: count for name, count in counts.items() if count and name != "rules"}


async def test_nothing_of_a_deleted_run_is_left(database: Database) -> None:
    stores = Stores.over(database)
    await fill(stores, "kept")
    before = await rows(database)
    await fill(stores, "gone")
    work = deleter(database)
    assert await work.delete("gone")
    await work.purge()
    assert await rows(database) == before
    assert not await work.delete("gone")


async def test_an_interrupted_deletion_is_resumed(database: Database) -> None:
    stores = Stores.over(database)
    await fill(stores, "gone")
    store = DeletionStore(database)
    assert await store.mark("gone")
    assert await store.purge_some("gone")
    assert await store.marked() == ["gone"]
    await deleter(database).purge()
    assert await rows(database) == {}


async def test_nothing_can_be_added_to_a_run_that_is_being_deleted(database: Database) -> None:
    stores = Stores.over(database)
    writer = await stores.register("gone")
    await stores.commit(writer, 0, [record(1)])
    await DeletionStore(database).mark("gone")
    with pytest.raises(RunDeletedError):
        await stores.commit(writer, 1, [record(2)])
    with pytest.raises(RunDeletedError):
        await stores.register("gone", writer="another")
    await stores.runs.finish_writer("gone", writer.writer_id, RunState.FINISHED, 1.0)
    assert await stores.runs.state_of("gone") == DELETING
    await deleter(database).purge()
    with pytest.raises(RunDeletedError):
        await stores.commit(writer, 1, [record(2)])


async def test_a_hello_under_way_does_not_revive_a_run_that_somebody_deletes(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion happens between the reading of the run's state and the writing of it. On SQLite, the single writer
    at a time prevents this.
    """
    database = Database(postgres.create_database(is_current=True))
    stores = Stores.over(database)
    await stores.register("gone")

    async def deleted_meanwhile(*arguments: Any) -> Any:
        assert await DeletionStore(database).mark("gone")
        return await register_layouts(*arguments)

    monkeypatch.setattr("server.storage.runs.register_layouts", deleted_meanwhile)
    with pytest.raises(RunDeletedError):
        await stores.register("gone", writer="late")
    assert await stores.runs.state_of("gone") == DELETING
    await database.close()


async def test_retention_deletes_old_runs_that_have_ended_and_no_others(database: Database) -> None:
    stores = Stores.over(database)
    for name, state, seen in (
        ("old", RunState.FINISHED, 0.0),
        ("silent", RunState.STALE, 0.0),
        ("running", RunState.RUNNING, 0.0),
        ("new", RunState.FINISHED, 9.5 * DAY),
    ):
        await stores.register(name, writer=name)
        async with database.write() as connection:
            await connection.execute(runs.update().where(runs.c.id == name).values(state=state, last_seen_at=seen))
    assert await deleter(database, now=10 * DAY, days=0).delete_expired() == 0
    work = deleter(database, now=10 * DAY, days=7)
    assert await work.delete_expired() == 2
    await work.purge()
    async with database.read() as connection:
        assert set((await connection.execute(select(runs.c.id))).scalars()) == {"running", "new"}


def settled_size(file: Path) -> int:
    """Return the bytes of a SQLite file whose server has ended, with the pages that may have been left in the WAL."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file.stat().st_size


async def test_a_sqlite_file_gives_the_space_back(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    with running_server(tmp_path / "empty"):
        pass
    empty = settled_size(tmp_path / "empty" / "data" / "spikewatch.sqlite3")
    with running_server(tmp_path) as server, server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello("large")
        for start in range(0, 20_000, 1_000):
            blocks = noise.standard_normal((1_000, 2, 2))
            writer.commit(*(record(start + at, block=blocks[at].tolist()) for at in range(1_000)))
        writer.finish()
    file = tmp_path / "data" / "spikewatch.sqlite3"
    before = settled_size(file)
    database = Database(f"sqlite:///{file}")
    work = deleter(database)
    assert await work.delete("large")
    await work.purge()
    await database.close()
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert file.stat().st_size - empty < (before - empty) / 4


async def test_postgres_uses_the_space_of_a_deleted_run_at_once_and_gives_back_its_end(postgres: Postgres) -> None:
    database = Database(postgres.create_database(is_current=True))
    stores = Stores.over(database)
    noise = np.random.default_rng(0)

    async def add(run_id: str) -> None:
        writer = await stores.register(run_id, writer=run_id)
        for start in range(0, 20_000, 2_000):
            blocks = noise.standard_normal((2_000, 2, 2))
            await stores.commit(writer, start, [record(start + at, block=blocks[at].tolist()) for at in range(2_000)])

    async def size() -> int:
        async with database.read() as connection:
            found: int = (await connection.execute(text("SELECT pg_total_relation_size('segments')"))).scalar_one()
            return found

    work = deleter(database)
    await add("first")
    await add("second")
    both = await size()
    await work.delete("first")
    await work.purge()
    await add("third")
    assert await size() < 1.2 * both
    for run_id in ("second", "third"):
        await work.delete(run_id)
    await work.purge()
    assert await size() < both / 4
    await database.close()


def test_a_deleted_run_is_gone_for_readers_and_refused_to_writers(server: RunningServer) -> None:
    with server.connect("/ingest") as socket, server.api() as api:
        writer = Writer(socket)
        writer.hello("gone", layouts=(LAYOUT,))
        writer.commit(record(1, block=[[1, 2], [3, 4]]))
        assert api.delete("/runs/gone").json() == {"id": "gone", "state": "deleting"}
        assert api.get("/runs").json()["runs"] == []
        for call in ("", "/series?keys=loss", "/heatmap?stat=grad_norm", "/export", "/events"):
            answer = api.get(f"/runs/gone{call}")
            assert (answer.status_code, answer.json()["error"]) in {(410, "run_deleted"), (404, "unknown_run")}
        assert api.delete("/runs/gone").status_code in {404, 410}
        writer.send(record(2))
        refused = writer.expect(Error)
        assert (refused.code, refused.retryable) == ("run_deleted", False)


def test_deleting_needs_the_scope_write_of_the_project(server: RunningServer) -> None:
    async def make() -> None:
        database = Database(server.database_url)
        for token, scope, project in (("r" * 20, Scope.READ, None), ("o" * 20, Scope.ADMIN, "other")):
            await TokenStore(database).create(digest_of(token), scope, project, "", 0.0)
        await database.close()

    asyncio.run(make())
    with server.connect("/ingest") as socket:
        Writer(socket).hello("kept")
        for token, status in (("r" * 20, 403), ("o" * 20, 404), ("x" * 20, 401)):
            with server.api(token) as api:
                assert api.delete("/runs/kept").status_code == status
        with server.api() as api:
            assert api.delete("/runs/none").json()["error"] == "unknown_run"
            assert api.get("/runs/kept").status_code == 200
