"""Work that one of several servers does for all (compaction, stale runs, retention), and its takeover."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import functools
import io
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from server.schema import spans, writers
from server.storage.database import Database
from tests.support.postgres import Postgres
from tests.support.redis import Redis
from tests.support.replicas import Replica, replica
from tests.support.writer import Writer, record

PATIENCE = 60.0  # seconds
QUICK = {"lease_seconds": "1", "heartbeat_every": "0.3", "compact_every": "0.2"}


@pytest.fixture
def places(postgres: Postgres, redis: Redis) -> dict[str, str]:
    url = postgres.create_database(is_current=True)
    return {"database_url": url, "redis_url": redis.url, **QUICK}


def until(is_so: Callable[[], bool], what: str, writer: Writer) -> None:
    """Let a writer commit until something holds that the servers, which are other processes, announce to nobody."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, what
        steps(writer, writer.seq, writer.seq + 1)


def compacted(url: str, run_id: str) -> int:
    """Return the last sequence of the run's only writer that is in a tile."""

    async def ask() -> int:
        database = Database(url)
        try:
            async with database.read() as connection:
                joined = spans.join(writers, spans.c.writer_id == writers.c.id)
                query = select(func.max(spans.c.last_seq)).select_from(joined).where(writers.c.run_id == run_id)
                return (await connection.execute(query)).scalar() or 0
        finally:
            await database.close()

    return asyncio.run(ask())


def stored(server: Replica, run_id: str) -> list[int]:
    with server.api() as api:
        text = api.get(f"/runs/{run_id}/export", params={"format": "csv"}).raise_for_status().text
    return [int(row["step"]) for row in csv.DictReader(io.StringIO(text))]


def is_gone(server: Replica, run_id: str) -> bool:
    with server.api() as api:
        return api.get(f"/runs/{run_id}").status_code == httpx.codes.NOT_FOUND


def state(server: Replica, run_id: str) -> str:
    with server.api() as api:
        found: str = api.get(f"/runs/{run_id}").json()["state"]
        return found


def steps(writer: Writer, first: int, after: int) -> None:
    writer.commit(*(record(step, block=[[1.0] * 2] * 2) for step in range(first, after)))


def no_trouble(directory: Path, *names: str) -> None:
    for name in names:
        log = (directory / f"{name}.log").read_text(encoding="utf-8")
        assert "Traceback" not in log, log


def test_a_killed_servers_compaction_and_stale_runs_are_taken_over(tmp_path: Path, places: dict[str, str]) -> None:
    url = places["database_url"]
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(replica(tmp_path, "one", stale_after="3", **places))
        here = Writer(stack.enter_context(one.connect("/ingest")))
        here.hello("here", "w")
        steps(here, 0, 600)
        until(lambda: compacted(url, "here") > 0, "the first server compacts", here)
        two = stack.enter_context(replica(tmp_path, "two", stale_after="3", **places))
        there = Writer(stack.enter_context(two.connect("/ingest")))
        there.hello("there", "w")
        steps(there, 0, 600)
        until(lambda: compacted(url, "there") > 0, "it compacts what came to the second server, too", there)
        one.process.kill()
        one.process.wait()
        steps(there, there.seq, 1_800)
        until(lambda: compacted(url, "there") > 1_000, "the second server compacts after the lease of the first", there)
        with two.connect("/live") as live:
            while state(two, "here") != "stale":
                live.recv(timeout=PATIENCE)  # the second server notices that a run of the first is silent
        assert state(two, "there") == "running", "a connected writer keeps its run alive, though it sends nothing"
        assert stored(two, "there") == list(range(there.seq))
        assert stored(two, "here") == list(range(here.seq))
    no_trouble(tmp_path, "one", "two")


def test_retention_is_done_by_two_servers_and_by_the_one_that_is_left(tmp_path: Path, places: dict[str, str]) -> None:
    kept = {**places, "retention_days": "0.00003", "retention_every": "0.2"}  # 2.6 seconds
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(replica(tmp_path, name, **kept)) for name in ("one", "two"))
        living = Writer(stack.enter_context(two.connect("/ingest")))
        living.hello("living", "w")
        for name, killed in (("old", None), ("older", one)):
            with two.connect("/ingest") as opened:
                ended = Writer(opened)
                ended.hello(name, "w")
                steps(ended, 0, 300)
                ended.finish()
            if killed is not None:
                killed.process.kill()
                killed.process.wait()
            until(functools.partial(is_gone, two, name), f"{name} is deleted", living)
            steps(living, living.seq, living.seq + 10)
        assert stored(two, "living") == list(range(living.seq))
    no_trouble(tmp_path, "one", "two")
