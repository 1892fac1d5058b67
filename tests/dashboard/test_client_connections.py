"""Connections between the dashboard and the server: one that the server closes at the wrong moment costs no page."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import uvicorn
from fastapi import FastAPI

from dashboard.client import ATTEMPTS, KEEP_ALIVE, ApiClient, ApiUnavailableError
from dashboard.config import DashboardConfig
from server.serving.listener import bind
from server.serving.service import KEEP_ALIVE as SERVER_KEEP_ALIVE

PAGE = b'{"runs":[],"next_cursor":null}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(PAGE), PAGE)


@dataclass
class Breaking:
    """A server that answers the first requests of each connection, and drops the connection at the next one."""

    answered: int
    """Number of requests of a connection that are answered."""
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    received: list[bytes] = field(default_factory=list)
    """First line of every request, answered or not."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection:
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        for number in range(self.answered + 1):
            data = b""
            while b"\r\n\r\n" not in data:
                piece = connection.recv(65536)
                if not piece:
                    return
                data += piece
            self.received.append(data.split(b"\r\n", 1)[0])
            if number < self.answered:
                connection.sendall(ANSWER)


@contextlib.contextmanager
def breaking(answered: int) -> Iterator[Breaking]:
    server = Breaking(answered)
    thread = threading.Thread(target=server.serve, name="breaking")
    thread.start()
    try:
        yield server
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        thread.join(20)


async def test_a_read_whose_connection_was_just_closed_is_repeated_on_a_new_one() -> None:
    with breaking(answered=1) as server:
        client = ApiClient(DashboardConfig(api_url=server.url))
        try:
            for _ in range(4):
                assert await client.runs() == []
        finally:
            await client.aclose()
    assert len(server.received) == 7, "each of the last three was sent on the old connection and on a new one"


async def test_a_change_is_never_sent_twice() -> None:
    with breaking(answered=1) as server:
        client = ApiClient(DashboardConfig(api_url=server.url))
        try:
            assert await client.runs() == []
            with pytest.raises(ApiUnavailableError, match="no answer from the server"):
                await client.acknowledge("alert")
        finally:
            await client.aclose()
    assert [line.split()[0] for line in server.received] == [b"GET", b"POST"]


async def test_a_server_that_drops_every_connection_is_reported() -> None:
    with breaking(answered=0) as server:
        client = ApiClient(DashboardConfig(api_url=server.url))
        try:
            with pytest.raises(ApiUnavailableError, match="no answer from the server"):
                await client.runs()
        finally:
            await client.aclose()
    assert len(server.received) == ATTEMPTS


async def test_a_server_that_keeps_connections_for_no_time_answers_every_read() -> None:
    """A real uvicorn closes each connection right after its answer, so requests keep meeting the close."""
    app = FastAPI()

    @app.get("/api/v1/runs")
    async def runs() -> dict[str, object]:
        return {"runs": [], "next_cursor": None}

    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_keep_alive=0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="hasty")
    thread.start()
    client = ApiClient(DashboardConfig(api_url=f"http://127.0.0.1:{listener.getsockname()[1]}"))
    try:
        for _ in range(300):
            assert await client.runs() == []
    finally:
        await client.aclose()
        server.should_exit = True
        thread.join(20)
        listener.close()


def test_the_client_gives_connections_up_before_the_server_does() -> None:
    assert 0 < 2 * KEEP_ALIVE <= uvicorn.Config(app=FastAPI()).timeout_keep_alive < SERVER_KEEP_ALIVE
