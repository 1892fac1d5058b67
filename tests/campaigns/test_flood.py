"""The server withstands 300 abusive connections; `make flood-test` opens ten thousand."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from campaigns.flood.flood_server import flood_server
from server.serving.listener import RESERVED_FILES, room
from tests.support.embedded import embedded
from tests.support.server import running_server

CONNECTIONS = 300
MAX_CONNECTIONS = 120
TURNED_AWAY = "closing connections"


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_flood_of_one_token_costs_another_nothing(tmp_path: Path) -> None:
    bounds = {"max_connections": MAX_CONNECTIONS, "token_connections": 20, "dashboard": False}
    with embedded(tmp_path, **bounds) as server:
        log = tmp_path / "up.log"
        report = flood_server(
            server, connections=CONNECTIONS, hold=1.0, rate=20.0, has_effect=lambda: TURNED_AWAY in log.read_text()
        )
        with server.api() as api:
            page = httpx.get(f"{server.url}/metrics").text
            assert api.get("/runs").status_code == 200
    assert report.is_passed, str(report)
    assert report.peak.descriptors < report.before.descriptors + MAX_CONNECTIONS + 32, str(report)
    assert "connections_turned_away_total{cause=" in page
    logged = log.read_text()
    assert logged.count(TURNED_AWAY) <= 4, "once a minute for each cause, not for each connection"
    assert "Traceback" not in logged


def test_a_connection_beyond_the_limit_gets_an_answer(tmp_path: Path) -> None:
    with running_server(tmp_path, max_connections=8) as server:
        address = ("127.0.0.1", httpx.URL(server.url).port or 0)
        with ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(server.connect("/live")).recv(timeout=20)
            late = stack.enter_context(socket.create_connection(address, 20))
            answer = b""
            while piece := late.recv(4096):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"too many connections" in answer
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode("ascii") in head
        with server.api() as api:
            assert api.get("/runs").status_code == 200


def test_the_connection_that_has_waited_longest_is_closed(tmp_path: Path) -> None:
    with running_server(tmp_path, max_connections=16) as server:  # four may wait for their request
        address = ("127.0.0.1", httpx.URL(server.url).port or 0)
        silent = [socket.create_connection(address, 20) for _ in range(6)]
        try:
            for first in silent[:2]:
                assert first.recv(1) == b""
            silent[2].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert silent[2].recv(4096).startswith(b"HTTP/1.1 200")
        finally:
            for one in silent:
                one.close()


@pytest.mark.parametrize(
    "rest",
    [
        b"POST /api/v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nX-Slow: ",
        b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
    ],
    ids=["body", "second-head", "unread-body"],
)
def test_the_rest_of_a_request_must_arrive_in_time(tmp_path: Path, rest: bytes) -> None:
    with running_server(tmp_path, request_timeout=0.5) as server:
        address = ("127.0.0.1", httpx.URL(server.url).port or 0)
        with socket.create_connection(address, 20) as slow:
            slow.sendall(rest)
            slow.settimeout(0.1)
            while True:
                try:
                    if not slow.recv(65536):
                        break
                except TimeoutError:
                    slow.sendall(b"x")  # each byte restarts uvicorn's own timeout
                except ConnectionResetError:
                    break


def test_descriptors_are_reserved_for_other_purposes() -> None:
    assert room(10_000, 1_000_000) == 10_000
    assert room(10_000, 4096) == 4096 - RESERVED_FILES
    assert room(10_000, 256) == 128
    assert room(100, 256) == 100
