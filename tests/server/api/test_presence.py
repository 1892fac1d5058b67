"""A query is cancelled when its client disconnects."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from starlette.requests import Request
from starlette.types import Message

from server.api.presence import while_present
from server.errors import ApiError
from server.main import MAX_BACKTESTS
from server.storage.database import Database
from tests.support.postgres import Postgres
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record

PATIENCE = 30.0  # seconds
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%spans%'"


def test_the_statement_of_a_client_that_left_is_taken_back_from_postgres(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.create_database(is_current=True)
    with running_server(tmp_path, database_url=url) as server:
        with server.connect("/ingest") as ingest:
            writer = Writer(ingest)
            writer.hello("run")
            writer.commit(*(record(step, block=[[1, 2], [3, 4]]) for step in range(10)))
        for path in ("series?keys=loss", "heatmap?stat=grad_norm"):
            asyncio.run(_leave_while_it_waits(server, url, f"GET /api/v1/runs/run/{path}"))
        with server.api() as api:
            assert len(api.get("/runs/run/series", params={"keys": "loss"}).json()["series"]["loss"]["step"]) == 10


def test_a_trial_of_a_rule_ends_with_its_page_and_leaves_its_place(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.create_database(is_current=True)
    rule = {"id": "high", "name": "High", "condition": "above", "value": 0.5, "scalar": "loss"}
    trial = {"rule": rule, "run": "run"}
    with running_server(tmp_path, database_url=url) as server:
        with server.connect("/ingest") as ingest:
            writer = Writer(ingest)
            writer.hello("run")
            writer.commit(*(record(step) for step in range(10)))
        for _ in range(MAX_BACKTESTS + 1):
            asyncio.run(_leave_while_it_waits(server, url, "POST /api/v1/rules/test", json.dumps(trial)))
        with server.api() as api:
            assert api.post("/rules/test", json=trial).json()["runs"][0]["records"] == 10


async def _leave_while_it_waits(server: RunningServer, url: str, asked: str, body: str = "") -> None:
    database = Database(url)
    try:
        async with database.write() as holder:
            await holder.execute(text("LOCK TABLE spans IN ACCESS EXCLUSIVE MODE"))
            client = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", server.service.config.port))
            request = (
                f"{asked} HTTP/1.1\r\nHost: server\r\nAuthorization: Bearer {server.token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            )
            await asyncio.to_thread(client.sendall, request.encode())
            await _until(database, lambda waiting: waiting > 0)
            client.close()
            await _until(database, lambda waiting: waiting == 0)
    finally:
        await database.close()


async def _until(database: Database, is_so: Callable[[int], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        async with database.read() as connection:
            if is_so((await connection.execute(text(WAITING))).scalar_one()):
                return
    raise AssertionError("the server did not come to it in time")


def _request(gone: asyncio.Event) -> Request:
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        for message in messages:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


async def test_work_is_cancelled_and_its_end_awaited() -> None:
    gone, began, ended = asyncio.Event(), asyncio.Event(), []

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def leave() -> None:
        await began.wait()
        gone.set()

    leaving = asyncio.create_task(leave())
    with pytest.raises(ApiError, match="client_gone"):
        await while_present(_request(gone), work())
    await leaving
    assert ended == [True]


async def test_a_client_that_stays_gets_the_answer_or_the_error() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async def answer() -> int:
        return 7

    assert await while_present(_request(asyncio.Event()), answer()) == 7
    with pytest.raises(ZeroDivisionError):
        await while_present(_request(asyncio.Event()), fail())
