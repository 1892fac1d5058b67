"""Memory that the connections to SQLite retain after many concurrent reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import event, text

from server.storage.database import READER_CACHE, SQLITE_READERS, Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'data.sqlite3'}")
    yield opened
    await opened.close()


async def _read(database: Database, statement: str) -> int:
    async with database.read() as connection:
        return int((await connection.execute(text(statement))).scalar_one())


async def test_many_readers_leave_few_connections_and_all_are_answered(database: Database) -> None:
    opened: list[object] = []
    event.listen(database.reading.sync_engine, "connect", lambda connection, _: opened.append(connection))
    answers = await asyncio.gather(*(_read(database, f"SELECT {number}") for number in range(50)))
    assert answers == list(range(50))
    assert len(opened) == SQLITE_READERS


async def test_a_reader_keeps_fewer_pages_than_the_writer(database: Database) -> None:
    async with database.write() as connection:
        writer = (await connection.execute(text("PRAGMA cache_size"))).scalar_one()
    sizes = await asyncio.gather(*(_read(database, "PRAGMA cache_size") for _ in range(SQLITE_READERS)))
    assert sizes == [-READER_CACHE] * SQLITE_READERS
    assert writer < -READER_CACHE, "negative values are in KiB"
