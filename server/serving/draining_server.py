"""uvicorn, ending in order: what is in flight is finished first, and a signal does not kill."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType

import uvicorn

from server.serving.listener import BACKLOG

SAME_SIGNAL = 2.0  # seconds; a terminal and a wrapper like make may both pass on one Ctrl-C


class DrainingServer(uvicorn.Server):
    """Lets ingest connections finish before the sockets close, and returns after a signal instead of dying of it."""

    def __init__(
        self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]], announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._announce = announce
        self._asked_to_stop: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            # uvicorn has one number for two things: who waits in the kernel, and whom one turn of the loop takes.
            listener.listen(BACKLOG)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
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
        """The first signal ends the server in order, one that comes later ends it at once."""
        now = time.monotonic()
        if self._asked_to_stop is None:
            self._asked_to_stop = now
            self.should_exit = True
        elif now - self._asked_to_stop > SAME_SIGNAL:
            self.force_exit = True
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it would show what it breaks off
