"""An HTTP proxy that supports only CONNECT and resolves every name to the loopback interface."""

from __future__ import annotations

import asyncio
import contextlib

from tests.support.tcp_proxy import Link, TcpProxy


class ConnectProxy(TcpProxy):
    """A context manager whose `targets` are the requests that it received."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    async def reach(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Link | None:
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = request.split(b"\r\n")[0].decode("ascii").split(" ")
            self.targets.append(f"{method} {target}")
            there = await asyncio.open_connection("127.0.0.1", int(target.rpartition(":")[2]))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            return Link(from_client=reader, to_client=writer, from_server=there[0], to_server=there[1])
        return None
