"""A TCP proxy on the loopback interface that knows where the websocket frames of the client begin and end.

It passes everything on until it is ordered to do harm to the next frame of records: cut the connection in the middle of
it, hold it back, pass it on twice, or swallow the answers to it.
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

Harm = Literal["cut", "delay", "duplicate", "mute"]

SMALLEST = 64  # bytes of a frame that is worth harming: pings and the like are passed on
REMEMBERED = 4  # frames that a duplicate may bring back


@dataclass(kw_only=True)
class Order:
    """Harm for the next frame."""

    harm: Harm
    seconds: float = 0.0
    """delay: how long the frame is held back. mute: how long no answer passes before the connection is cut."""
    done: threading.Event = field(default_factory=threading.Event)


class ChaosProxy(TcpProxy):
    """Use as a context manager. `order` may be called from any thread."""

    def __init__(self, targets: Sequence[int], random: random.Random) -> None:
        """``targets``: ports on the loopback interface. A connection goes to the next one that takes it."""
        super().__init__(targets)
        self._random = random
        self._orders: deque[Order] = deque()
        self._muted: set[Link] = set()

    def order(self, order: Order) -> None:
        """Harm the next frame that no other order harms."""
        self._orders.append(order)

    def withdraw(self, order: Order) -> None:
        """Forget an order that no frame has come for."""
        with contextlib.suppress(ValueError):
            self._orders.remove(order)

    async def forth(self, link: Link) -> None:
        """Client to server, frame by frame."""
        past: deque[bytes] = deque(maxlen=REMEMBERED)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            link.to_server.write(await link.from_client.readuntil(b"\r\n\r\n"))
            while True:
                frame = await _frame(link.from_client)
                if len(frame) >= SMALLEST and self._orders:
                    order = self._orders.popleft()
                    order.done.set()
                    if not await self._harm(link, frame, past, order):
                        return
                else:
                    link.to_server.write(frame)
                past.append(frame)
                await link.to_server.drain()

    async def back(self, link: Link) -> None:
        with contextlib.suppress(OSError):
            while data := await link.from_server.read(MAX_CHUNK):
                if link not in self._muted:
                    link.to_client.write(data)
                    await link.to_client.drain()

    async def _harm(self, link: Link, frame: bytes, past: Sequence[bytes], order: Order) -> bool:
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
    """One masked frame of a client (RFC 6455, 5.2), with its head."""
    head = await reader.readexactly(2)
    length = head[1] & 0x7F
    if length >= 126:
        extended = await reader.readexactly(2 if length == 126 else 8)
        head += extended
        length = int.from_bytes(extended, "big")
    return head + await reader.readexactly(4 + length)
