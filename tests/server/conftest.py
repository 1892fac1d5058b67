"""Both databases, for every test that touches one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from server.storage import migrate
from server.storage.database import Database
from tests.support.postgres import Postgres
from tests.support.redis import Redis
from tests.support.server import RunningServer, running_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    started = Postgres()
    yield started
    started.stop()


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """Shared by tests that do it no harm."""
    started = Redis()
    yield started
    started.stop()


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    """Of one test, which may kill it."""
    started = Redis()
    yield started
    started.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.sqlite3'}"
    started: Postgres = request.getfixturevalue("postgres")
    return started.create_database()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Open, with the current schema."""
    opened = Database(database_url)
    await migrate.upgrade(opened)
    yield opened
    await opened.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """On SQLite."""
    with running_server(tmp_path) as running:
        yield running
