"""The migrations, on both databases."""

from __future__ import annotations

import asyncio
import itertools
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from client_sdk.protocol import Record
from server.errors import DatabaseAheadError, DatabaseCorruptError, DatabaseError, DatabaseUnavailableError
from server.models import RunState
from server.pipeline.packing import pack
from server.schema import metadata
from server.storage import migrate
from server.storage.database import Database
from server.storage.loss_choices import LossChoices, LossChoiceStore
from server.storage.measurements.commits import Commit, CommitRequest
from tests.server.storage.conftest import Stores
from tests.support.postgres import Postgres
from tests.support.writer import histogram, record


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, metadata))


def _tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    started: Postgres = request.getfixturevalue("postgres")
    return started.create_database()


async def test_upgrade_gives_the_declared_schema_and_downgrade_takes_it_back(empty_url: str) -> None:
    database = Database(empty_url)
    try:
        assert not await migrate.is_current(database)
        for _ in range(2):
            await migrate.upgrade(database)
            assert await migrate.is_current(database)
            async with database.read() as connection:
                assert await connection.run_sync(_differences) == []
            await migrate.downgrade(database, "base")
            async with database.read() as connection:
                assert await connection.run_sync(_tables) == {"alembic_version"}
    finally:
        await database.close()


async def test_upgrade_twice_changes_nothing(database: Database) -> None:
    await migrate.upgrade(database)
    assert await migrate.is_current(database)


async def test_a_newer_schema_is_refused(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = 'future'"))
    with pytest.raises(DatabaseAheadError, match="newer spikewatch"):
        await migrate.upgrade(database)
    with pytest.raises(DatabaseAheadError, match="newer spikewatch"):
        await migrate.downgrade(database, "base")


def test_servers_that_start_together_migrate_once(empty_url: str) -> None:
    together = threading.Barrier(6)
    failures: list[BaseException] = []

    async def start() -> None:
        database = Database(empty_url)
        try:
            await migrate.upgrade(database)
            assert await migrate.is_current(database)
        finally:
            await database.close()

    def run() -> None:
        together.wait(20)
        try:
            asyncio.run(start())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


async def _rows(database: Database) -> dict[str, int]:
    """Return the number of rows of the tables that every schema has."""
    async with database.read() as connection:
        return {
            name: (await connection.execute(text(f"SELECT count(*) FROM {name}"))).scalar_one()
            for name in ("runs", "writers", "layouts", "segments", "attempts", "scalars", "histograms")
        }


async def test_every_migration_goes_down_and_up_again_with_data_in_it(database: Database) -> None:
    stores = Stores.over(database)
    shapes = (histogram("ratio", [[1] * 64, [2] * 64]),)
    records = [record(step, float(step), block=[[1.0, 2.0], [3.0, 4.0]], histograms=shapes) for step in range(20)]
    await stores.commit(await stores.register(), 0, records)
    before = await _rows(database)
    assert min(before.values()) > 0
    history = [script.revision for script in ScriptDirectory.from_config(migrate.alembic_config()).walk_revisions()]
    for newer, older in itertools.pairwise(history):
        for _ in range(2):
            await migrate.downgrade(database, older)
            assert await _rows(database) == before, f"{newer} to {older}"
            await migrate.upgrade(database, newer)
            assert await _rows(database) == before, f"{older} to {newer}"
        await migrate.downgrade(database, older)
    await migrate.upgrade(database)
    found = await stores.series.read("run", ["loss"], step_from=None, step_to=None, points=100)
    assert found.series["loss"].last[0].tolist() == [float(step) for step in range(20)]
    writer = await stores.register()
    assert (writer.last_seq, writer.epoch) == (20, 1), "hellos from before the migration are not counted"


async def _attempts(database: Database) -> list[tuple[int, int | None]]:
    query = "SELECT attempt, merged_into FROM attempts ORDER BY attempt"
    async with database.read() as connection:
        return [(row.attempt, row.merged_into) for row in await connection.execute(text(query))]


async def test_the_latest_migrations_go_down_and_up_again_with_their_own_data(database: Database) -> None:
    """Late records stay with their attempts, and chosen losses give way to the automatic ones."""
    stores = Stores.over(database)
    writer = await stores.register()
    batches: list[tuple[range, dict[str, float], bool]] = [
        (range(20), {"train/loss": 1.0}, False),
        (range(5, 7), {"val_loss": 5.0}, True),
        (range(10, 30), {"train/loss": 2.0}, False),
        (range(12, 14), {"val_loss": 6.0}, True),
    ]
    after = 0
    for now, (steps, scalars, is_late) in enumerate(batches):
        records = [Record(step=step, time=1_000.0 + now, scalars=scalars) for step in steps]
        drafts = pack(after + 1, records, writer.layouts, {}, late=[is_late] * len(records))
        request = CommitRequest(writer=writer, expected_seq=after, drafts=drafts, now=1_000.0 + now)
        (outcome,) = await stores.commits.commit([request])
        assert isinstance(outcome, Commit), outcome
        after += len(records)
    choices = LossChoiceStore(database)
    await choices.choose_for_run("run", "val_loss")
    await choices.choose_for_project("project", "train/loss")
    await choices.show("run", "val_loss", since=30, loss=6.0, sparkline=None)
    attempts, before = await _attempts(database), await _rows(database)
    assert sorted(merged for _, merged in attempts if merged is not None) == [0, 1]
    found = await stores.series.read("run", ["val_loss"], step_from=None, step_to=None, points=100)
    for _ in range(2):
        await migrate.downgrade(database, "0008")
        assert await _rows(database) == before
        await migrate.upgrade(database)
        assert (await _attempts(database), await _rows(database)) == (attempts, before)
    again = await Stores.over(database).series.read("run", ["val_loss"], step_from=None, step_to=None, points=100)
    assert again.series["val_loss"].last[0].tolist() == found.series["val_loss"].last[0].tolist() == [5, 5, 6, 6]
    assert await choices.of_run("run") == LossChoices(of_run=None, of_code=None, of_project=None)
    assert await choices.of_project("project") is None


async def test_a_schema_that_cannot_hold_what_is_stored_is_refused_and_nothing_changes(database: Database) -> None:
    stores = Stores.over(database)
    writer = await stores.register()
    await stores.commit(writer, 0, [record(step) for step in range(20)])
    await stores.runs.finish_writer("run", writer.writer_id, RunState.FINISHED, 1_001.0)
    async with database.write() as connection:
        await connection.execute(
            text(
                "INSERT INTO spans (run_id, writer_id, rank, attempt, level, width, first_seq, last_seq, first_step, "
                "last_step, entries, steps) VALUES ('run', :writer, 0, 0, 0, 1, 1, 20, 0, 19, 20, :steps)"
            ),
            {"writer": writer.writer_id, "steps": b""},
        )
    with pytest.raises(DatabaseError, match="restore a backup"):
        await migrate.downgrade(database, "0001")
    assert await migrate.is_current(database)


async def test_a_file_that_is_not_a_database_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "broken.sqlite3"
    path.write_bytes(b"not a database at all, but long enough to be read as a header" * 100)
    database = Database(f"sqlite:///{path}")
    try:
        with pytest.raises(DatabaseCorruptError, match=r"broken\.sqlite3"):
            await migrate.upgrade(database)
    finally:
        await database.close()


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    database = Database("postgresql://postgres@127.0.0.1:1/none")
    try:
        with pytest.raises(DatabaseUnavailableError):
            await database.ping()
    finally:
        await database.close()


async def test_a_failed_write_leaves_nothing(database: Database) -> None:
    async def fail() -> None:
        async with database.write() as connection:
            await connection.execute(
                text("INSERT INTO tokens (digest, scope, label, created_at) VALUES ('d', 'read', '', 0)")
            )
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM tokens"))).scalar_one() == 0
