"""Servers in processes of their own on one database and one Redis, to be paused and killed; and one address for all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.support.embedded import COMMAND, STOP_TIMEOUT
from tests.support.server import TOKEN


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A running `spikewatch serve`."""

    url: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def connect(self, path: str) -> ClientConnection:
        """A websocket below `/api/v1`; use it as a context manager."""
        address = self.url.replace("http", "ws", 1) + f"/api/v1{path}"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return connect(address, additional_headers=headers, compression=None, max_size=None, max_queue=None)

    def api(self) -> httpx.Client:
        """A client of `/api/v1`; use it as a context manager."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=30, trust_env=False)

    def pause(self) -> None:
        """It answers nothing and forgets nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def replica(home: Path, name: str, **settings: str) -> Iterator[Replica]:
    """Start `spikewatch serve` with these settings; the schema must be current. Its standard error goes to a file."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SPIKEWATCH_")}
    given = {f"SPIKEWATCH_{key.upper()}": value for key, value in settings.items()}
    environment = {
        **kept,
        "SPIKEWATCH_HOME": str(home),
        "SPIKEWATCH_PORT": "0",
        "SPIKEWATCH_ADMIN_TOKEN": TOKEN,
        **given,
    }
    with (home / f"{name}.log").open("w") as log:
        process = subprocess.Popen([*COMMAND, "serve"], env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            words = process.stdout.readline().split()
            assert words, f"`spikewatch serve` did not start: {(home / f'{name}.log').read_text()}"
            yield Replica(url=words[-1], process=process)
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_TIMEOUT)
            process.stdout.close()


class Spreader:
    """A TCP address in front of several ports, as a balancer is: each connection goes to the next one that takes it.

    Use as a context manager.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self.ports = list(ports)
        """May be changed at any time."""
        self.port = 0
        self._next = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="spreader")
        self._links: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _close(self) -> None:
        self._server.close()
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            for _ in range(len(self.ports)):
                self._next += 1
                with contextlib.suppress(OSError):
                    there = await asyncio.open_connection("127.0.0.1", self.ports[self._next % len(self.ports)])
                    await _link((reader, writer), there)
                    return
        except asyncio.CancelledError:
            pass
        finally:
            self._links.discard(task)
            writer.transport.abort()


End = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _link(one: End, other: End) -> None:
    ways = [asyncio.create_task(_pass_on(one[0], other[1])), asyncio.create_task(_pass_on(other[0], one[1]))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        other[1].transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
