"""Everything that relies on private interfaces of uvicorn. Checked with the versions in `CHECKED_VERSIONS`.

* `limited_protocol`: overrides methods of uvicorn's HTTP protocol to apply the limits of `ConnectionLimiter`. Relies on
  `HttpToolsProtocol` with ``connections``, ``cycle``, ``loop``, ``transport`` and its parser callbacks.
* `DrainingServer`: overrides ``startup``, ``shutdown``, ``capture_signals`` and ``handle_exit`` of `uvicorn.Server`,
  and reads ``servers``.

benchmarks/results/serving.md shows what breaks without each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.serving.connection_limiter import ConnectionLimiter
from server.serving.listener import BACKLOG

CHECKED_VERSIONS = ("0.54",)
"""Minor versions of uvicorn whose source was compared with the overrides below."""
UNREAD_TIMEOUT = 60.0  # seconds after which the kernel drops a connection whose client reads nothing (Linux)
SAME_SIGNAL = 2.0  # seconds; a terminal and a wrapper such as make may both pass on one Ctrl-C
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 30\r\n\r\ntoo many connections are open\n"
)


def limited_protocol(limiter: ConnectionLimiter) -> type[HttpToolsProtocol]:
    """Return a protocol class for `uvicorn.Config(http=…)` that applies the limits."""

    class Protocol(LimitedProtocol):
        limits = limiter

    return Protocol


class LimitedProtocol(HttpToolsProtocol):
    """One HTTP connection until it ends or becomes a websocket."""

    limits: ConnectionLimiter
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the connection if the server is full; else wait for its first request."""
        super().connection_made(transport)
        _limit_unread_time(transport)
        if self.limits.is_full(len(self.connections)):
            transport.write(FULL)
            transport.close()
            return
        self._expect()

    def on_headers_complete(self) -> None:
        """Wait for the body of the request."""
        super().on_headers_complete()
        self._expect()

    def on_message_complete(self) -> None:
        """Stop waiting, unless the answer was sent before the body arrived."""
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:
            self._expect()
        else:
            self._settle()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            # Bytes that do not begin a request cancel uvicorn's own timer and must not keep the connection open.
            self._expect()

    def handle_websocket_upgrade(self) -> None:
        """Stop waiting: websockets have their own timeouts."""
        self._settle()
        super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection."""
        self._settle()
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def _expect(self) -> None:
        """Close the connection unless a request, or the rest of one, arrives in time."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(self.limits.seconds, self.transport.close)
        self.limits.wait_for(self)

    def _settle(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.limits.leave(self)


class DrainingServer(uvicorn.Server):
    """A server that lets connections finish before it closes them, and returns after a signal instead of dying."""

    def __init__(
        self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]], announce: Callable[[], None]
    ) -> None:
        """``announce`` is called once the server accepts connections, ``drain`` after it has stopped accepting them."""
        super().__init__(config)
        self._drain = drain
        self._announce = announce
        self._asked_to_stop: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections, with the backlog of `listener`."""
        await super().startup(sockets)
        for listener in sockets or ():
            # uvicorn uses one number for the backlog of the kernel and for the connections accepted per iteration.
            listener.listen(BACKLOG)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections, drain, and close what is left."""
        for server in self.servers:
            server.close()
        await self._drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM while serving. Unlike uvicorn, do not raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        caught = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in order on the first signal, and at once on a later one."""
        now = time.monotonic()
        if self._asked_to_stop is None:
            self._asked_to_stop = now
            self.should_exit = True
        elif now - self._asked_to_stop > SAME_SIGNAL:
            self.force_exit = True
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it would report what it interrupts


def _limit_unread_time(transport: asyncio.Transport) -> None:
    """Let the kernel drop the connection if the client reads nothing; closing would wait for it without end."""
    connected = transport.get_extra_info("socket")
    if connected is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * UNREAD_TIMEOUT))
