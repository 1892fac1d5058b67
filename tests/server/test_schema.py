"""The history of the schema, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from server.errors import DatabaseAheadError, DatabaseCorruptError, DatabaseUnavailableError
from server.schema import metadata
from server.storage import migrate
from server.storage.database import Database


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, metadata))


def _tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


async def test_upgrade_gives_the_declared_schema_and_downgrade_takes_it_back(database_url: str) -> None:
    database = Database(database_url)
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


async def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
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
