"""Fixtures with databases, Redis servers and a running server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from server.storage.database import Database
from tests.support.current_schema import create_sqlite
from tests.support.postgres import Postgres
from tests.support.redis import Redis
from tests.support.server import RunningServer, running_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A Postgres that tests share without harming it."""
    started = Postgres()
    started.forgo_durability()
    yield started
    started.stop()


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """A Redis server that tests share without harming it."""
    started = Redis()
    yield started
    started.stop()


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    """A Redis server of one test, which may kill it."""
    started = Redis()
    yield started
    started.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a new database with the current schema, of each kind in turn."""
    if request.param == "sqlite":
        create_sqlite(tmp_path / "test.sqlite3")
        return f"sqlite:///{tmp_path / 'test.sqlite3'}"
    started: Postgres = request.getfixturevalue("postgres")
    return started.create_database(is_current=True)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open database with the current schema."""
    opened = Database(database_url)
    yield opened
    await opened.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A running server on SQLite."""
    with running_server(tmp_path) as running:
        yield running
