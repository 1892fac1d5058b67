"""A TCP proxy on the loopback interface that knows where the websocket frames of the client begin and end.

It passes everything on until it is ordered to do harm to the next frame of records: cut the connection in the middle of
it, hold it back, pass it on twice, or swallow the answers to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

Harm = Literal["cut", "delay", "duplicate", "mute"]

SMALLEST = 64  # bytes of a frame that is worth harming: pings and the like are passed on
REMEMBERED = 4  # frames that a duplicate may bring back
LARGEST_CHUNK = 65536


@dataclass(kw_only=True)
class Order:
    """Harm for the next frame."""

    harm: Harm
    seconds: float = 0.0
    """delay: how long the frame is held back. mute: how long no answer passes before the connection is cut."""
    done: threading.Event = field(default_factory=threading.Event)


class ChaosProxy:
    """Use as a context manager. `order` may be called from any thread."""

    def __init__(self, targets: Sequence[int], random: random.Random) -> None:
        """``targets``: ports on the loopback interface. A connection goes to the next one that takes it."""
        self._targets = itertools.cycle(targets)
        self._count = len(targets)
        self._random = random
        self._orders: deque[Order] = deque()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._links: set[asyncio.Task[None]] = set()
        self.port = 0

    def order(self, order: Order) -> None:
        """Harm the next frame that no other order harms."""
        self._orders.append(order)

    def withdraw(self, order: Order) -> None:
        """Forget an order that no frame has come for."""
        with contextlib.suppress(ValueError):
            self._orders.remove(order)

    def cut_all(self) -> None:
        """Reset every connection. Those that come afterwards pass."""
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
            await self._connect(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            self._links.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(self._count):
            with contextlib.suppress(OSError):
                from_server, to_server = await asyncio.open_connection("127.0.0.1", next(self._targets))
                break
        else:
            return  # the servers are down: the client sees its connection end
        link = _Link(reader=reader, writer=writer, from_server=from_server, to_server=to_server)
        ways = [asyncio.create_task(self._forth(link)), asyncio.create_task(_back(link))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_server.transport.abort()

    async def _forth(self, link: _Link) -> None:
        """Client to server, frame by frame."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            link.to_server.write(await link.reader.readuntil(b"\r\n\r\n"))
            while True:
                frame = await _frame(link.reader)
                if len(frame) >= SMALLEST and self._orders:
                    order = self._orders.popleft()
                    order.done.set()
                    if not await self._harm(link, frame, order):
                        return
                else:
                    link.to_server.write(frame)
                link.past.append(frame)
                await link.to_server.drain()

    async def _harm(self, link: _Link, frame: bytes, order: Order) -> bool:
        """False when the connection is over."""
        match order.harm:
            case "cut":
                link.to_server.write(frame[: self._random.randrange(1, len(frame))])
                await link.to_server.drain()
                return False
            case "delay":
                await asyncio.sleep(order.seconds)
                link.to_server.write(frame)
            case "duplicate":
                again = self._random.choice([*link.past, frame])
                link.to_server.write(frame + again + frame)
            case "mute":
                link.muted = True
                link.to_server.write(frame)
                await asyncio.sleep(order.seconds)
                return False
        return True


@dataclass(kw_only=True)
class _Link:
    """One connection of a client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    from_server: asyncio.StreamReader
    to_server: asyncio.StreamWriter
    muted: bool = False
    past: deque[bytes] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


async def _back(link: _Link) -> None:
    """Server to client."""
    with contextlib.suppress(OSError):
        while data := await link.from_server.read(LARGEST_CHUNK):
            if not link.muted:
                link.writer.write(data)
                await link.writer.drain()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    """One masked frame of a client (RFC 6455, 5.2), with its head."""
    head = await reader.readexactly(2)
    length = head[1] & 0x7F
    if length >= 126:
        extended = await reader.readexactly(2 if length == 126 else 8)
        head += extended
        length = int.from_bytes(extended, "big")
    return head + await reader.readexactly(4 + length)
