"""Limits on the HTTP connections of one process: how many are open, and how long a client may withhold a request.

uvicorn closes a connection that is idle between two requests. It limits neither the time that a request may take to
arrive nor the number of connections, so a few hundred silent clients exhaust the file descriptors of a process, its
database and its Redis included (benchmarks/results/serving.md has the measurement). Each limit has its own policy:

* ``max_open`` connections, websockets included: a further client receives 503 and is disconnected.
* ``max_waiting`` connections without a complete request: the one that has waited longest is closed. A regular client
  sends its request at once and is never the oldest for long.
* ``seconds`` for the header of a request and again for its body: afterwards the connection is closed.

`server.serving.uvicorn_private` applies the limits to connections.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import Protocol

from server.log_actions import LogAction

logger = logging.getLogger(__name__)

WAITING_SHARE = 4
"""Divisor of ``max_open`` that gives ``max_waiting``."""
WARN_EVERY = 60.0  # seconds


class LimitedConnection(Hashable, Protocol):
    """A connection that the limiter may close."""

    def abort(self) -> None:
        """Close the connection at once."""
        ...


class ConnectionLimiter:
    """Counts the connections of one server. Used from its event loop only."""

    def __init__(
        self,
        *,
        max_open: int,
        seconds: float,
        turned_away: Callable[[str], None] = lambda cause: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``turned_away`` is called with "full" or "silent" for each connection that is closed to keep a limit."""
        self.max_open = max_open
        self.max_waiting = max(1, max_open // WAITING_SHARE)
        self.seconds = seconds
        self._turned_away = turned_away
        self._monotonic = monotonic
        self._waiting: dict[LimitedConnection, None] = {}
        """Connections without a complete request, in the order in which their waiting began."""
        self._warned_at: dict[str, float] = {}

    def is_full(self, open_connections: int) -> bool:
        """Return whether a new connection, which is already counted, must be turned away."""
        if open_connections <= self.max_open:
            return False
        self._turn_away("full", f"the maximum of {self.max_open} connections is reached")
        return True

    def wait_for(self, connection: LimitedConnection) -> None:
        """Note that a client owes a request or its body from now on."""
        self._waiting.pop(connection, None)
        self._waiting[connection] = None
        if len(self._waiting) > self.max_waiting:
            oldest = next(iter(self._waiting))
            self.leave(oldest)
            oldest.abort()
            self._turn_away("silent", f"more than {self.max_waiting} connections have not sent a complete request")

    def leave(self, connection: LimitedConnection) -> None:
        """Note that a client owes nothing or is gone."""
        self._waiting.pop(connection, None)

    def _turn_away(self, cause: str, reason: str) -> None:
        self._turned_away(cause)
        now = self._monotonic()
        if now - self._warned_at.get(cause, -WARN_EVERY) >= WARN_EVERY:
            self._warned_at[cause] = now
            logger.warning(
                "closing connections: %s (see SPIKEWATCH_MAX_CONNECTIONS and the limit of open files)",
                reason,
                extra={"action": LogAction.CONNECTIONS_TURNED_AWAY, "cause": cause},
            )
