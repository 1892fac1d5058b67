"""uvicorn's HTTP protocol with a door: who says nothing is let go, and no more come in than there is room for.

uvicorn bounds how long a connection may rest between two requests. It bounds neither how long a request may take to
arrive, nor how many connections there are: without a bound of its own a process runs out of file descriptors, and then
its database and its Redis go without as well. Each bound says who goes first:

* ``most`` open connections, websockets included: who comes on top is told 503 and closed.
* ``most_waiting`` of which a request, or the rest of one, is yet to come: the one that has waited longest is closed.
  An honest client sends its request at once and is never the oldest for long.
* ``seconds`` for the head of a request and again for its body: then the connection is closed.
* ``UNREAD_TIMEOUT`` for a peer that takes nothing of what is sent to it: the kernel cuts the connection (Linux).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.log_actions import LogAction

logger = logging.getLogger(__name__)

WAITING_SHARE = 4  # of all connections one in so many may be waited for
UNREAD_TIMEOUT = 60.0  # seconds
WARN_EVERY = 60.0  # seconds
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 30\r\n\r\ntoo many connections are open\n"
)


class ConnectionLimiter:
    """Of one server. On its event loop only."""

    def __init__(
        self,
        *,
        most: int,
        seconds: float,
        turned_away: Callable[[str], None] = lambda cause: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``turned_away``: told "full" or "silent" for each connection that was closed to keep a bound."""
        self.most = most
        self.most_waiting = max(1, most // WAITING_SHARE)
        self.seconds = seconds
        self._turned_away = turned_away
        self._monotonic = monotonic
        self._waiting: dict[Guarded, None] = {}
        """In the order in which the waiting began."""
        self._warned_at: dict[str, float] = {}

    @property
    def waiting(self) -> int:
        """Connections of which a request, or the rest of one, is yet to come."""
        return len(self._waiting)

    def protocol(self) -> type[HttpToolsProtocol]:
        """The protocol class for `uvicorn.Config(http=…)`."""
        limiter = self

        class Protocol(Guarded):
            door = limiter

        return Protocol

    def wait_for(self, connection: Guarded) -> None:
        """The connection owes something, from now on."""
        self._waiting.pop(connection, None)
        self._waiting[connection] = None
        if len(self._waiting) > self.most_waiting:
            oldest = next(iter(self._waiting))
            self.leave(oldest)
            oldest.transport.abort()
            self.turn_away("silent", f"more than {self.most_waiting} connections have sent no whole request")

    def leave(self, connection: Guarded) -> None:
        self._waiting.pop(connection, None)

    def turn_away(self, cause: str, words: str) -> None:
        self._turned_away(cause)
        now = self._monotonic()
        if now - self._warned_at.get(cause, -WARN_EVERY) >= WARN_EVERY:
            self._warned_at[cause] = now
            logger.warning(
                "connections are closed: %s (SPIKEWATCH_MAX_CONNECTIONS, and the limit of open files)",
                words,
                extra={"action": LogAction.CONNECTIONS_TURNED_AWAY, "cause": cause},
            )


class Guarded(HttpToolsProtocol):
    """One connection, until it is upgraded."""

    door: ConnectionLimiter
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _give_up_unread(transport)
        if len(self.connections) > self.door.most:
            self.door.turn_away("full", f"{self.door.most} are open, the most that this process has room for")
            transport.write(FULL)
            transport.close()
            return
        self._expect()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._expect()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:  # the answer did not wait for the body
            self._expect()
        else:
            self._settle()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            # Bytes that begin no request end uvicorn's own timer, and must not hold the connection for ever.
            self._expect()

    def handle_websocket_upgrade(self) -> None:
        self._settle()
        super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        super().connection_lost(exc)

    def _expect(self) -> None:
        """A request, or the rest of one, must come in time."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(self.door.seconds, self.transport.close)
        self.door.wait_for(self)

    def _settle(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.door.leave(self)


def _give_up_unread(transport: asyncio.Transport) -> None:
    """Closing waits for what was written to be taken: without this, for ever."""
    connected = transport.get_extra_info("socket")
    if connected is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * UNREAD_TIMEOUT))
