"""Publication follows the acknowledgement: a broker that blocks delays viewers, never training processes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from client_sdk import answers
from client_sdk.protocol import PROTOCOL_VERSION, Ack, Batch, Hello
from server.assembly.pipeline import make_pipeline
from server.broker import LiveMessage, MemoryBroker
from server.config import Config
from server.pipeline.announcer import Announcer
from server.pipeline.publisher import MAX_PENDING, Publisher
from server.storage import migrate
from server.storage.database import Database
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.measurements.commits import Commit
from server.storage.runs import Registration, RunStore
from tests.support.redis import Redis
from tests.support.server import running_server
from tests.support.writer import Writer, record


class BlockingBroker(MemoryBroker):
    """Accepts a message only while ``is_open`` is set, as a broker behind a connection that hangs."""

    def __init__(self) -> None:
        super().__init__(64)
        self.is_open = asyncio.Event()
        self.called = asyncio.Event()
        self.accepted: list[dict[str, Any]] = []

    async def publish(self, message: LiveMessage) -> None:
        self.called.set()
        await self.is_open.wait()
        self.accepted.append(dict(message.body))
        await super().publish(message)

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [body for body in self.accepted if body["type"] == kind]


def make_publisher(database: Database, broker: BlockingBroker) -> Publisher:
    runs = RunStore(database)
    fleet = FleetQuery(database, runs, LayoutStore(database))
    publisher = Publisher(broker, Announcer(fleet, broker, 5.0), runs.project_of)
    publisher.registered(Registration(run_id="run", project="p", writer_id=1, rank=0, last_seq=0, epoch=1, layouts={}))
    return publisher


def commit_of(step: int) -> Commit:
    return Commit(last_seq=step + 1, first_step=step, last_step=step, began=False, attempt=0, events=(), segments=())


def test_a_broker_that_blocks_delays_no_acknowledgement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = threading.Event()

    async def never(broker: MemoryBroker, message: LiveMessage) -> None:
        called.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(MemoryBroker, "publish", never)
    with running_server(tmp_path) as server:
        for attempt in range(2):
            with server.connect("/ingest") as socket:
                writer = Writer(socket)
                assert writer.hello().last_seq == 20 * attempt
                for step in range(20):
                    writer.send(record(20 * attempt + step))
                    assert writer.expect(Ack).seq == 20 * attempt + step + 1
        assert called.wait(20), "the broker was asked, and blocked"
        with server.api() as api:
            assert api.get("/runs/run").json()["last_step"] == 39


def test_a_redis_that_hangs_delays_no_acknowledgement(tmp_path: Path, own_redis: Redis) -> None:
    with running_server(tmp_path, redis_url=own_redis.url) as server, server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello()
        own_redis.pause()
        try:
            for step in range(20):
                writer.send(record(step))
                assert writer.expect(Ack).seq == step + 1
        finally:
            own_redis.go_on()


async def test_messages_of_a_run_stay_in_order_behind_a_broker_that_blocks(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x")
    await migrate.upgrade(database)
    broker = BlockingBroker()
    pipeline = make_pipeline(Config(), database, broker)
    hello = Hello(version=PROTOCOL_VERSION, run_id="run", writer="w", project="p")
    session = await pipeline.writers.register(hello)
    for step in range(30):
        # The learning rate jumps at the end, on which the detectors open an alert.
        logged = record(step, lr=0.01 if step < 29 else 1.0)
        assert await pipeline.commit(session, [Batch(first_seq=step + 1, records=(logged,))]) == step + 1
    await broker.called.wait()
    assert broker.accepted == []
    broker.is_open.set()
    await pipeline.stop()
    assert [body["step_to"] for body in broker.of_type("advance")] == list(range(30))
    assert pipeline.publisher.pending == 0
    await database.close()


async def test_what_does_not_fit_is_replaced_by_one_resync_and_alerts_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(f"sqlite:///{tmp_path}/x")
    broker = BlockingBroker()
    publisher = make_publisher(database, broker)
    publisher.committed("run", commit_of(0), 0.0)
    await broker.called.wait()
    alert = answers.Alert(id="a", run_id="run", kind="spike", level="watch", state="open", step=1, title="", message="")
    await publisher.concluded("run", [alert], [])
    for step in range(1, MAX_PENDING + 10):
        publisher.committed("run", commit_of(step), 0.0)
    assert publisher.pending <= MAX_PENDING + 1
    waiting = asyncio.create_task(publisher.concluded("run", [alert] * MAX_PENDING, []))
    await asyncio.sleep(0)
    assert not waiting.done(), "the detectors wait until there is room for their alerts"
    broker.is_open.set()
    await waiting
    await publisher.stop()
    assert len(broker.of_type("alert")) == MAX_PENDING + 1
    assert len(broker.of_type("resync")) == 1
    steps = [body["step_to"] for body in broker.of_type("advance")]
    assert (steps[0], steps[-1]) == (0, MAX_PENDING + 9)
    assert steps == sorted(steps)
    assert len([entry for entry in caplog.records if "too slowly" in entry.message]) == 1
    await database.close()


async def test_a_shutdown_reports_what_a_broker_never_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.pipeline.publisher.STOP_TIMEOUT", 0.01)
    database = Database(f"sqlite:///{tmp_path}/x")
    broker = BlockingBroker()
    publisher = make_publisher(database, broker)
    publisher.committed("run", commit_of(0), 0.0)
    await broker.called.wait()
    await publisher.stop()
    assert "1 live messages were not published before the shutdown" in caplog.text
    await database.close()
