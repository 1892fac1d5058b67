"""A full disk: nothing is acknowledged that is not stored, reading continues, and writing continues afterwards."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from client_sdk.protocol import Ack, Error, Record
from server.storage import database
from tests.support.server import running_server
from tests.support.writer import Writer, record

PLENTY = 2**31
STEPS = 200


class Disk:
    """Number of pages that SQLite may use, read before each transaction."""

    pages = PLENTY

    def bound(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {self.pages}")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk, make_engine = Disk(), database.make_engine

    def make(url: URL, is_sqlite: bool, connections: int) -> AsyncEngine:
        engine = make_engine(url, is_sqlite, connections)
        event.listen(engine.sync_engine, "begin", disk.bound, insert=True)
        return engine

    monkeypatch.setattr(database, "make_engine", make)
    return disk


def batch(first: int) -> list[Record]:
    """Return records that do not compress."""
    return [
        record(step, block=[[hash((step, row, column)) % 9973 / 7 for column in range(2)] for row in range(2)])
        for step in range(first, first + 10)
    ]


def test_a_full_disk_acknowledges_nothing_and_recovers(
    disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with running_server(tmp_path, compact_every=3600.0) as server, server.api() as api:
        acknowledged = 0
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello()
            writer.commit(*batch(0))
            disk.pages = 1  # no more than it has
            answer = None
            while not isinstance(answer, Error):
                writer.send(*batch(writer.seq))
                answer = writer.receive()
                if isinstance(answer, Ack):
                    acknowledged = answer.seq
        assert (answer.code, answer.retryable) == ("storage_unavailable", True)
        assert "nothing is lost" in answer.message
        assert "there is no space left for the database" in caplog.text
        assert "free some" in caplog.text
        assert api.get("/runs").status_code == 200, "reading continues"
        disk.pages = PLENTY
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello()
            assert writer.seq >= max(acknowledged, 10)
            while writer.seq < STEPS:
                writer.commit(*batch(writer.seq))
        steps = api.get("/runs/run/series", params={"keys": "loss", "points": 10_000}).json()["series"]["loss"]["step"]
        assert steps == list(range(STEPS))
