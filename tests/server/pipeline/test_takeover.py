"""A run changes hands between servers: nothing that its detectors conclude is lost to viewers and trainings."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from client_sdk.protocol import PROTOCOL_VERSION, AlertNotice, Batch, Hello
from server.assembly.pipeline import make_pipeline
from server.broker import MemoryBroker
from server.broker.leases import LocalLeases
from server.config import Config
from server.storage.database import Database
from tests.server.storage.conftest import Stores
from tests.server.test_live import receive
from tests.server.test_operations import numbers
from tests.support.postgres import Postgres
from tests.support.redis import Redis
from tests.support.server import running_server
from tests.support.writer import Writer, record

WAITS_FOR_LOCK = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
async def connection(postgres: Postgres) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    """URL of an empty Postgres database, and a connection to it that may hold locks."""
    url = postgres.create_database(is_current=True)
    opened = await asyncpg.connect(url)
    yield url, opened
    await opened.close()


@pytest.mark.parametrize("how", ["lease", "shutdown"])
async def test_what_a_server_saves_while_it_loses_a_run_is_published(
    tmp_path: Path, connection: tuple[str, asyncpg.Connection], redis: Redis, how: str
) -> None:
    """The other server finds the alert stored, so it says nothing about it itself."""
    url, database = connection
    shared: dict[str, Any] = {"database_url": url, "redis_url": redis.url, "lease_seconds": 0.6}
    run_id = uuid.uuid4().hex
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(running_server(tmp_path, **shared))
        two = stack.enter_context(running_server(tmp_path, **shared))
        live = stack.enter_context(two.connect(f"/live?runs={run_id}"))
        receive(live, "subscribed")
        before = Writer(stack.enter_context(one.connect("/ingest")))
        after = Writer(stack.enter_context(two.connect("/ingest")))
        before.hello(run_id)
        before.commit(*(record(step) for step in range(10)))
        hold = database.transaction()
        await hold.start()
        while not await database.fetch("SELECT 1 FROM monitors WHERE run_id = $1 FOR UPDATE", run_id):
            pass
        before.commit(*(record(step, math.nan) for step in range(10, 20)))
        while await database.fetchval(WAITS_FOR_LOCK) == 0:
            pass  # the detectors of the first server have not begun to save the alert
        after.hello(run_id)
        if how == "lease":
            after.commit(record(20))
            async with httpx.AsyncClient() as client:
                while numbers((await client.get(f"{one.url}/metrics")).text)["spikewatch_followers"]:
                    pass
        else:
            one.service.stop()
        await hold.rollback()
        assert receive(live, "alert")["alert"]["kind"] == "nonfinite"
        while not isinstance(message := after.receive(), AlertNotice):
            pass
        assert (message.alert.kind, message.alert.run_id) == ("nonfinite", run_id)


async def test_a_lower_rank_that_nobody_has_read_is_found(database: Database) -> None:
    """A server that follows a higher rank may take the lease back before the server of the lower one has read it."""
    stores = Stores.over(database)
    pipeline = make_pipeline(Config(), database, MemoryBroker(64), follower_idle=0.01)
    hello = Hello(version=PROTOCOL_VERSION, run_id="run", writer="high", project="project", rank=1)
    await pipeline.commit(await pipeline.writers.register(hello), [Batch(first_seq=1, records=(record(0),))])
    await pipeline.followers.settle("run")
    await pipeline.stop()
    assert await stores.runs.lagging() == []
    await stores.commit(await stores.register(writer="low", rank=0), 0, [record(0, math.nan)])
    assert await stores.runs.lagging() == ["run"]
    again = make_pipeline(Config(), database, MemoryBroker(64), follower_idle=0.01)
    await again.start()
    await again.followers.settle("run")
    await again.stop()
    assert await stores.runs.lagging() == []


class SlowLeases(LocalLeases):
    """Leases whose release waits until it is let through, as that in a Redis far away."""

    def __init__(self) -> None:
        super().__init__()
        self.releasing = asyncio.Event()
        self.may_release = asyncio.Event()

    async def release(self, name: str) -> None:
        self.releasing.set()
        await self.may_release.wait()


async def test_what_is_committed_while_an_idle_run_is_released_is_read(database: Database) -> None:
    leases, broker = SlowLeases(), MemoryBroker(64)
    pipeline = make_pipeline(Config(), database, broker, leases, follower_idle=0.01)
    hello = Hello(version=PROTOCOL_VERSION, run_id="run", writer="w", project="project")
    session = await pipeline.writers.register(hello)
    async with broker.subscribe(run_ids=None, project=None, types=frozenset({"alert"})) as news:
        await pipeline.commit(session, [Batch(first_seq=1, records=(record(0),))])
        await leases.releasing.wait()
        await pipeline.commit(session, [Batch(first_seq=2, records=(record(1, math.nan),))])
        leases.may_release.set()
        async with asyncio.timeout(20):
            assert (await news.get()).body()["alert"]["kind"] == "nonfinite"
    await pipeline.stop()
