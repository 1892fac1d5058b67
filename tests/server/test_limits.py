"""Limits of one token: each limit has an error code, and other tokens are not affected."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

import client_sdk
from campaigns.fuzz.client import Closed, Socket
from campaigns.fuzz.mutations import hello
from client_sdk.protocol import PROTOCOL_VERSION, Ack, Error, Hello
from server.assembly.pipeline import make_pipeline
from server.auth.admissions import MAX_PAUSE, Admissions, TokenLimits
from server.auth.tokens import Authenticator, Identity
from server.broker import MemoryBroker
from server.config import Config
from server.errors import IngestError, LimitError
from server.models import Principal, Scope
from server.pipeline.writer_registry import MAX_REGISTRATIONS
from server.storage import migrate
from server.storage.database import Database
from server.storage.runs import RunStore
from server.storage.sessions import SessionStore
from server.storage.tokens import TokenStore
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record

MOST = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    limits: dict[str, Any] = {"token_connections": MOST, "hello_timeout": 60.0, "max_body_bytes": 2048}
    with running_server(tmp_path_factory.mktemp("limits"), **limits) as running:
        yield running


@pytest.fixture(scope="module")
def hasty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Soon out of patience. Not for what must get through on a busy machine."""
    with running_server(tmp_path_factory.mktemp("hasty"), hello_timeout=2.0, request_timeout=0.5) as running:
        yield running


def new_token(server: RunningServer, **fields: object) -> tuple[int, str]:
    with server.api() as api:
        made = api.post("/tokens", json={"scope": "write", **fields}).json()
        return made["id"], made["token"]


def commits(server: RunningServer, run_id: str, token: str | None = None) -> None:
    """Somebody else works as ever."""
    with server.connect("/ingest", token=token) as other:
        writer = Writer(other)
        writer.hello(run_id, run_id)
        writer.commit(record(writer.seq))


def test_a_token_holds_so_many_sockets_and_others_none_the_less(server: RunningServer) -> None:
    _, token = new_token(server)
    with ExitStack() as stack:
        for number in range(MOST):
            path = "/live" if number % 2 else "/ingest"
            opened = stack.enter_context(server.connect(path, token=token))
            if path == "/ingest":
                Writer(opened).hello(f"run-{number}", "writer")
        for path in ("/ingest", "/live"):
            with server.connect(path, token=token) as refused:
                frame = refused.recv(timeout=20)
                words = frame if isinstance(frame, str) else frame.decode("utf-8", "replace")
                assert "too_many_connections" in words
                assert f"{MOST} open connections" in words
                with pytest.raises(ConnectionClosed):
                    refused.recv(timeout=20)
                assert refused.close_code == 1013
        commits(server, "beside-the-limit")
    commits(server, "after-the-limit", token)


async def test_hundreds_of_connections_at_once_are_refused_and_a_training_goes_on(server: RunningServer) -> None:
    _, token = new_token(server)
    port = httpx.URL(server.url).port
    assert port is not None

    told: list[asyncio.Future[str]] = [asyncio.get_running_loop().create_future() for _ in range(10 * MOST)]
    enough = asyncio.Event()

    async def one(number: int) -> None:
        async with Socket(port, token) as opened:
            opened.send(hello(f"flood-{number}", "writer"))
            answer = await opened.answer()
            if isinstance(answer, Error):
                assert isinstance(await opened.answer(), Closed)
                told[number].set_result(answer.code)
                return
            told[number].set_result(type(answer).__name__)
            await enough.wait()  # a socket that was welcomed keeps its place until all others were told

    async with asyncio.TaskGroup() as flood:
        for number in range(10 * MOST):
            flood.create_task(one(number))
        await asyncio.to_thread(commits, server, "beside-the-flood")
        answers = Counter(await asyncio.gather(*told))
        enough.set()
    assert answers == {"Welcome": MOST, "too_many_connections": 9 * MOST}


def admissions(database: Database, clock: list[float], **limits: float) -> Admissions:
    values = {"connections": 3, "new_per_second": 1.0, "values_per_second": 0.0, **limits}
    authenticator = Authenticator(TokenStore(database), SessionStore(database), admin_token=None)
    return Admissions(authenticator, TokenLimits(**values), monotonic=lambda: clock[0])  # type: ignore[arg-type]


def identity(key: str) -> Identity:
    return Identity(digest=key, principal=Principal(scope=Scope.WRITE, key=key), token_id=1)


async def test_a_token_opens_so_many_sockets_a_second(tmp_path: Path) -> None:
    database, clock = Database(f"sqlite:///{tmp_path}/x"), [0.0]
    held = admissions(database, clock)
    for _ in range(3):
        with held.admit(identity("a")):
            pass
    with (
        pytest.raises(LimitError, match=r"more than 1 connections a second .* try again in 1 s"),
        held.admit(identity("a")),
    ):
        pass
    with held.admit(identity("b")):
        pass
    clock[0] += 1.0
    with held.admit(identity("a")):
        pass
    await database.close()


async def test_a_token_over_its_share_of_values_is_read_more_slowly(tmp_path: Path) -> None:
    database, clock = Database(f"sqlite:///{tmp_path}/x"), [0.0]
    one, other = identity("a").principal, identity("b").principal
    free, bounded = admissions(database, clock), admissions(database, clock, values_per_second=100.0)
    assert free.pause_after(one, 10**9) == 0
    assert bounded.pause_after(one, 100) == 0
    assert bounded.pause_after(one, 50) == 0.5
    assert bounded.pause_after(one, 10**6) == MAX_PAUSE
    assert bounded.pause_after(other, 100) == 0
    await database.close()


def test_a_slowed_token_loses_nothing(tmp_path: Path) -> None:
    with running_server(tmp_path, token_values_per_second=2_000.0) as server:
        with server.connect("/ingest") as opened:
            writer = Writer(opened)
            writer.hello()
            for first in range(0, 40, 10):
                writer.send(*(record(step, block=[[1.0] * 2] * 2) for step in range(first, first + 10)))
            writer.send(*(record(step, block=[[1.0] * 2] * 2) for step in range(40, 500)))
            writer.send(record(500))
            writer.wait_for(501)
        with server.api() as api:
            assert api.get("/runs/run").json()["last_step"] == 500


def test_a_connection_that_sends_no_request_is_closed(hasty_server: RunningServer) -> None:
    address = ("127.0.0.1", httpx.URL(hasty_server.url).port or 0)
    with socket.create_connection(address, 20) as silent, socket.create_connection(address, 20) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert silent.recv(1) == b""
        assert slow.recv(1) == b""
    with httpx.Client(base_url=hasty_server.url) as client:
        assert client.get("/healthz").status_code == 200


async def test_one_byte_after_another_is_no_hello_and_holds_nobody_up(hasty_server: RunningServer) -> None:
    port = httpx.URL(hasty_server.url).port
    assert port is not None
    frame = hello("slow", "slow")
    async with Socket(port, hasty_server.token) as slow:
        slow.send_raw(bytes([0x82, 0xFE]) + len(frame).to_bytes(2, "big") + b"\0\0\0\0")
        answering = asyncio.create_task(slow.answer())
        await asyncio.to_thread(commits, hasty_server, "beside-the-slow-one")
        for byte in frame:
            if answering.done():
                break
            slow.send_raw(bytes([byte]))
            await asyncio.wait([answering], timeout=0.2)
        answer = await answering
        assert isinstance(answer, Error)
        assert (answer.code, "no frame arrived for 2 s" in answer.message) == ("hello_first", True)
    with hasty_server.api() as api:
        assert api.get("/runs/slow").status_code == 404


def test_a_body_that_is_too_large_is_refused_announced_or_not(server: RunningServer) -> None:
    with server.api() as api:
        answers = [
            api.post("/tokens", content=b"x" * 3000),
            api.post("/tokens", content=iter([b" " * 1500, b"x" * 1500])),
        ]
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]) == (413, "too_large")
            assert "2048 bytes" in answer.json()["message"]
        assert api.get("/runs").status_code == 200


def test_a_token_revoked_in_mid_stream_ends_its_sockets_and_the_training_spools(
    server: RunningServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "client_sdk")
    token_id, token = new_token(server, project="revoked")
    _, other = new_token(server)
    with server.connect("/live", token=token) as live, server.connect("/live", token=other) as kept:
        live.recv(timeout=20)
        kept.recv(timeout=20)
        run = client_sdk.init(project="revoked", url=server.url, token=token, directory=tmp_path, run_id="revoked")
        try:
            run.log({"loss": 1.0}, step=0)
            assert run.flush(20)
            with server.api() as api:
                assert api.delete(f"/tokens/{token_id}").status_code == 204
            frames: list[str] = []
            with suppress(ConnectionClosed):
                frames.extend(str(frame) for frame in live)
            assert live.close_code == 4401
            assert '"unauthenticated"' in frames[-1]
            assert "revoked" in frames[-1]
            deadline = time.monotonic() + 30
            while "does not accept the token" not in caplog.text and time.monotonic() < deadline:
                run.log({"loss": 1.0})
            run.log({"loss": 7.0})
            assert not run.flush(0.5)
            status = run.status()
            assert (status.connected, status.dropped) == (False, 0)
            assert status.logged > status.acknowledged == 1
            warnings = [entry for entry in caplog.records if "does not accept the token" in entry.getMessage()]
            assert len(warnings) == 1
        finally:
            run.finish(0.0)
        commits(server, "beside-the-revoked")
        assert '"type"' in str(kept.recv(timeout=20)), "another token hears on"
    commits(server, "after-the-revoked", other)


@pytest.mark.parametrize("off", [-300.0, 300.0], ids=["behind", "ahead"])
def test_a_training_whose_clock_is_five_minutes_off_breaks_nothing(server: RunningServer, off: float) -> None:
    run_id = f"clock{off:.0f}"
    now = time.time()
    with server.connect("/ingest") as opened, server.connect(f"/live?runs={run_id}") as live:
        writer = Writer(opened)
        writer.hello(run_id, "w", started_at=now + off)
        writer.commit(*(record(step, time=now + off + step) for step in range(5)))
        while '"advance"' not in str(live.recv(timeout=20)):
            pass
        with server.api() as api:
            run = api.get(f"/runs/{run_id}").json()
            while run["step_rate"] is None:
                run = api.get(f"/runs/{run_id}").json()
        assert run["state"] == "running", "the server goes by when it heard of it"
        assert run["step_rate"] == pytest.approx(1.0)
        assert abs(run["last_seen_at"] - now) < 120


async def test_a_frame_flood_of_hellos_and_pings_is_answered_in_turn(server: RunningServer) -> None:
    port = httpx.URL(server.url).port
    assert port is not None
    async with Socket(port, server.token) as flood:
        for number in range(300):
            flood.send(hello("hellos", f"writer-{number % 3}"))
            flood.send_raw(b"\x89\x80\0\0\0\0")
        await asyncio.to_thread(commits, server, "beside-the-hellos")
        for _ in range(300):
            answer = await flood.answer()
            assert not isinstance(answer, Closed | Error | Ack)


async def test_a_hello_whose_connection_has_ended_takes_nobodys_turn(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x")
    await migrate.upgrade(database)
    pipeline = make_pipeline(Config(), database, MemoryBroker(64))

    def greeting(run_id: str) -> Hello:
        return Hello(version=PROTOCOL_VERSION, run_id=run_id, writer="w", project="p")

    async with database.write():  # nobody's turn comes meanwhile
        first = [asyncio.create_task(pipeline.writers.register(greeting(f"run-{n}"))) for n in range(MAX_REGISTRATIONS)]
        await asyncio.sleep(0)
        gone = asyncio.create_task(pipeline.writers.register(greeting("gone"), lambda: False))
        patient = asyncio.create_task(pipeline.writers.register(greeting("patient"), lambda: True))
        await asyncio.sleep(0)
    assert {(await task).last_seq for task in [*first, patient]} == {0}
    with pytest.raises(IngestError, match="ended before it was registered"):
        await gone
    assert await RunStore(database).version_of("gone") is None
    assert await RunStore(database).version_of("patient") is not None
    await database.close()
