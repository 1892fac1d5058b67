"""A TCP proxy in front of several ports of the loopback interface; subclasses do more than forward bytes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

MAX_CHUNK = 65536


@dataclass(frozen=True, kw_only=True)
class Link:
    """The connection of a client and the connection to the server that was opened for it."""

    from_client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    from_server: asyncio.StreamReader
    to_server: asyncio.StreamWriter


class TcpProxy:
    """A proxy that forwards each connection to the next port that accepts it, like a load balancer.

    Use it as a context manager; it runs in its own thread. When one side of a connection ends, the other one is cut.
    """

    def __init__(self, ports: Sequence[int] = ()) -> None:
        self.ports = list(ports)
        """Ports of the servers; may be changed at any time."""
        self.port = 0
        """Port of the proxy itself."""
        self._next = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=type(self).__name__)
        self._links: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut_all(self) -> None:
        """Reset every connection; later ones are forwarded again. Called from any thread."""
        self._loop.call_soon_threadsafe(lambda: [link.cancel() for link in self._links])

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

    async def reach(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Link | None:
        """Return the link to a server for a client's connection, or None if no server accepts it, which ends it."""
        for _ in range(len(self.ports)):
            self._next += 1
            with contextlib.suppress(OSError):
                there = await asyncio.open_connection("127.0.0.1", self.ports[self._next % len(self.ports)])
                return Link(from_client=reader, to_client=writer, from_server=there[0], to_server=there[1])
        return None

    async def forth(self, link: Link) -> None:
        """Forward from the client to the server until either side ends."""
        await pass_on(link.from_client, link.to_server)

    async def back(self, link: Link) -> None:
        """Forward from the server to the client until either side ends."""
        await pass_on(link.from_server, link.to_client)

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
            link = await self.reach(reader, writer)
            if link is not None:
                await self._serve(link)
        except asyncio.CancelledError:
            pass
        finally:
            self._links.discard(task)
            writer.transport.abort()

    async def _serve(self, link: Link) -> None:
        ways = [asyncio.create_task(self.forth(link)), asyncio.create_task(self.back(link))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            link.to_server.transport.abort()


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward bytes as they arrive until either side is closed."""
    with contextlib.suppress(OSError):
        while data := await reader.read(MAX_CHUNK):
            writer.write(data)
            await writer.drain()
