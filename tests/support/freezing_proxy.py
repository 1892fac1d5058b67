"""A TCP proxy that can stop forwarding bytes without closing a connection: a half-dead connection."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from tests.support.tcp_proxy import MAX_CHUNK, Link, TcpProxy


class FreezingProxy(TcpProxy):
    """A proxy to ``target``, a port of the loopback interface, that can be frozen."""

    def __init__(self, target: int) -> None:
        super().__init__([target])
        self._frozen = threading.Event()

    def freeze(self) -> None:
        """Stop forwarding; sent bytes stay in the buffers of the kernel until these are full."""
        self._frozen.set()

    def thaw(self) -> None:
        """Forward new connections again; frozen ones stay dead."""
        self._frozen = threading.Event()

    async def forth(self, link: Link) -> None:
        await _pass_on(link.from_client, link.to_server, self._frozen)

    async def back(self, link: Link) -> None:
        await _pass_on(link.from_server, link.to_client, self._frozen)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frozen: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(MAX_CHUNK):
            if frozen.is_set():
                await asyncio.Event().wait()  # forever: the proxy cancels this task when it closes
            writer.write(data)
            await writer.drain()
