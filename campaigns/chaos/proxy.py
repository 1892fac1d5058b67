"""A TCP proxy on the loopback interface that recognises the websocket frames of the client and can damage them.

It forwards everything until it is ordered to inject a fault into the next frame of records: cut the connection in the
middle of it, delay it, forward it twice, or discard the answers to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.support.tcp_proxy import MAX_CHUNK, Link, TcpProxy

FrameFault = Literal["cut", "delay", "duplicate", "mute"]
"""Fault that the proxy can inject into a frame."""

MIN_FRAME = 64  # bytes; smaller frames, such as pings, are always forwarded
REMEMBERED = 4  # earlier frames that a duplicate may repeat


@dataclass(kw_only=True)
class FrameOrder:
    """Order to inject a fault into the next frame."""

    fault: FrameFault
    seconds: float = 0.0
    """Duration of a delay, or of the silence of a mute before the connection is cut."""
    done: threading.Event = field(default_factory=threading.Event)
    """Event that is set when the fault is injected."""


class ChaosProxy(TcpProxy):
    """A proxy that injects faults into frames. Use as a context manager. `order` may be called from any thread."""

    def __init__(self, targets: Sequence[int], random: random.Random) -> None:
        """Forward connections to ``targets``, ports on the loopback interface: each to the next one that accepts it."""
        super().__init__(targets)
        self._random = random
        self._orders: deque[FrameOrder] = deque()
        self._muted: set[Link] = set()

    def order(self, order: FrameOrder) -> None:
        """Inject a fault into the next frame that no earlier order uses."""
        self._orders.append(order)

    def withdraw(self, order: FrameOrder) -> None:
        """Cancel an order for which no frame has arrived."""
        with contextlib.suppress(ValueError):
            self._orders.remove(order)

    async def forth(self, link: Link) -> None:
        """Forward the client's data to the server, frame by frame."""
        past: deque[bytes] = deque(maxlen=REMEMBERED)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            link.to_server.write(await link.from_client.readuntil(b"\r\n\r\n"))
            while True:
                frame = await _frame(link.from_client)
                if len(frame) >= MIN_FRAME and self._orders:
                    order = self._orders.popleft()
                    order.done.set()
                    if not await self._inject(link, frame, past, order):
                        return
                else:
                    link.to_server.write(frame)
                past.append(frame)
                await link.to_server.drain()

    async def back(self, link: Link) -> None:
        """Forward the server's data to the client, unless the link is muted."""
        with contextlib.suppress(OSError):
            while data := await link.from_server.read(MAX_CHUNK):
                if link not in self._muted:
                    link.to_client.write(data)
                    await link.to_client.drain()

    async def _inject(self, link: Link, frame: bytes, past: Sequence[bytes], order: FrameOrder) -> bool:
        """Inject the ordered fault and return whether the connection continues."""
        match order.fault:
            case "cut":
                link.to_server.write(frame[: self._random.randrange(1, len(frame))])
                await link.to_server.drain()
                return False
            case "delay":
                await asyncio.sleep(order.seconds)
                link.to_server.write(frame)
            case "duplicate":
                again = self._random.choice([*past, frame])
                link.to_server.write(frame + again + frame)
            case "mute":
                self._muted.add(link)
                link.to_server.write(frame)
                try:
                    await asyncio.sleep(order.seconds)
                finally:
                    self._muted.discard(link)
                return False
        return True


async def _frame(reader: asyncio.StreamReader) -> bytes:
    """Read one masked frame of a client (RFC 6455, section 5.2), including its head."""
    head = await reader.readexactly(2)
    length = head[1] & 0x7F
    if length >= 126:
        extended = await reader.readexactly(2 if length == 126 else 8)
        head += extended
        length = int.from_bytes(extended, "big")
    return head + await reader.readexactly(4 + length)
