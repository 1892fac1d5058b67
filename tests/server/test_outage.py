"""A database that is temporarily unreachable: nothing is acknowledged meanwhile, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from client_sdk.protocol import Error
from tests.support.postgres import Postgres
from tests.support.server import running_server
from tests.support.writer import Writer, record


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """Postgres server that no other test shares."""
    started = Postgres()
    yield started
    started.stop()


def test_writers_are_asked_to_wait_and_continue_afterwards(own_postgres: Postgres, tmp_path: Path) -> None:
    with running_server(tmp_path, database_url=own_postgres.create_database()) as server, server.api() as api:
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello()
            writer.commit(record(0), record(1))
            own_postgres.interrupt()
            writer.send(record(2))
            error = writer.expect(Error)
            assert (error.code, error.retryable) == ("storage_unavailable", True)
            assert "postgres" not in error.message
        refused = api.get("/runs")
        assert (refused.status_code, refused.json()["error"]) == (503, "storage_unavailable")
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        own_postgres.resume()
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            assert writer.hello().last_seq == 2
            writer.commit(record(2), record(3))
        series = api.get("/runs/run/series", params={"keys": "loss"}).json()["series"]["loss"]
        assert series["step"] == [0, 1, 2, 3]
