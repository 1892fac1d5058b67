"""Runs a real server on a free port in a thread of the test."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from server.config import Config
from server.serving.service import Service
from tests.support.current_schema import create_sqlite

TOKEN = "sw_" + "test" * 10
START_TIMEOUT = 30.0  # seconds


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A server that accepts connections, with its admin token."""

    service: Service
    token: str
    database_url: str

    @property
    def url(self) -> str:
        return self.service.config.api_url

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def api(self, token: str | None = None) -> httpx.Client:
        """Return a client of `/api/v1`; use it as a context manager."""
        headers = self.headers if token is None else {"Authorization": f"Bearer {token}"}
        # Plain HTTP; reading the authorities that would verify a certificate takes longer than most tests.
        return httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=30, verify=False)

    def connect(self, path: str, *, token: str | None = None) -> ClientConnection:
        """Return a websocket below `/api/v1`; use it as a context manager. An empty token sends no header."""
        given = self.token if token is None else token
        headers = {"Authorization": f"Bearer {given}"} if given else {}
        address = self.url.replace("http", "ws", 1) + f"/api/v1{path}"
        # The queue is unbounded so that a client that has stopped reading still sees the end of its own close.
        # A busy machine may take more than the library's ten seconds to open one connection among hundreds.
        return connect(
            address, additional_headers=headers, compression=None, max_size=None, max_queue=None, open_timeout=60
        )


@contextlib.contextmanager
def running_server(directory: Path, *, database_url: str | None = None, **settings: Any) -> Iterator[RunningServer]:
    """Serve with the data in ``directory``, without a dashboard by default. Using the directory again is a restart.

    The database is the SQLite database in ``directory``, which is created with the current schema, or ``database_url``.
    """
    config = Config(
        **{
            "home": directory,
            "data": directory / "data",
            "database_url": database_url,
            "port": 0,
            "admin_token": TOKEN,
            "dashboard": False,
            **settings,
        }
    )
    database = directory / "data" / "spikewatch.sqlite3"
    if config.resolved_database_url == f"sqlite:///{database.absolute()}" and not database.exists():
        create_sqlite(database)
    service = Service(config, migrate=True)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            service.run()
        except BaseException as error:
            failures.append(error)
            service.ready.set()

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        assert service.ready.wait(START_TIMEOUT), "the server did not start in time"
        if failures:
            raise failures[0]
        yield RunningServer(
            service=service, token=config.admin_token or "", database_url=service.config.resolved_database_url
        )
    finally:
        service.stop()
        thread.join(START_TIMEOUT)
        assert not thread.is_alive(), "the server did not stop in time"
