"""A TCP proxy that can stop passing bytes on without closing anything: a half-dead connection."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from tests.support.tcp_proxy import LARGEST_CHUNK, Link, TcpProxy


class FreezingProxy(TcpProxy):
    """Between a client and ``target`` (a port on the loopback interface). Connections made after `thaw` work."""

    def __init__(self, target: int) -> None:
        super().__init__([target])
        self._frozen = threading.Event()

    def freeze(self) -> None:
        """Swallow nothing, pass nothing on: what is sent stays in the buffers of the kernel until they are full."""
        self._frozen.set()

    def thaw(self) -> None:
        """New connections pass again; the frozen ones stay dead."""
        self._frozen = threading.Event()

    async def forth(self, link: Link) -> None:
        await _pass_on(link.from_client, link.to_server, self._frozen)

    async def back(self, link: Link) -> None:
        await _pass_on(link.from_server, link.to_client, self._frozen)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frozen: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(LARGEST_CHUNK):
            if frozen.is_set():
                await asyncio.Event().wait()  # until the proxy ends
            writer.write(data)
            await writer.drain()
