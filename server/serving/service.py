"""A server on its own socket, from the check of its database to the last acknowledgement."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable

import uvicorn

from server.allocator import keep_trimmed
from server.config import Config
from server.errors import ConfigurationError
from server.main import create_app
from server.serving.connection_limiter import ConnectionLimiter
from server.serving.draining_server import DrainingServer
from server.serving.listener import ACCEPTED_AT_ONCE, allow_open_files, bind, room
from server.storage import migrate
from server.storage.database import Database

WEBSOCKET_LIMIT = 4
"""A frame of up to so many times the limit is still read, so that it can be refused with a word."""
SWITCH_INTERVAL = 0.001
"""Seconds for which a thread that computes keeps others from Python; each waits for up to all of them, and the thread
that reads and answers sockets should not wait for long."""
PING_EVERY = 20.0  # seconds
PING_TIMEOUT = 60.0  # seconds; a socket is not read while its queue is full, and its pongs wait with its frames


class Service:
    """A server on its own socket, in this thread or another. Bound at construction, so that the port is known."""

    def __init__(self, config: Config, *, migrate: bool) -> None:
        """``migrate``: bring the schema up to date first; else a schema that is not is refused.

        Raises `ConfigurationError` when the address cannot be bound.
        """
        self._socket = bind(config.host, config.port)
        self.config = config.with_port(self._socket.getsockname()[1])
        self._migrate = migrate
        self._server: DrainingServer | None = None
        self._stopped = False
        self.ready = threading.Event()

    def run(self, on_ready: Callable[[Config], None] | None = None) -> None:
        """Serve until `stop`, SIGTERM or SIGINT. Raises `DatabaseError` and `ConfigurationError` before it is ready."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        most = room(self.config.max_connections, allow_open_files())
        try:
            asyncio.run(self._serve(most, on_ready))
        finally:
            self._socket.close()

    def stop(self) -> None:
        """From any thread: finish what is in flight and return from `run`."""
        self._stopped = True
        if self._server is not None:
            self._server.should_exit = True

    async def _serve(self, most: int, on_ready: Callable[[Config], None] | None) -> None:
        database = Database(self.config.resolved_database_url)
        try:
            await migrate.check_not_ahead(database)
            if self._migrate:
                await migrate.upgrade(database)
            elif not await migrate.is_current(database):
                raise ConfigurationError("the schema of the database is not up to date: run `spikewatch migrate` first")
            app = create_app(self.config, database)
            await app.state.broker.check()
        except BaseException:
            await database.close()
            raise

        def announce() -> None:
            self.ready.set()
            if on_ready is not None:
                on_ready(self.config)

        turned_away = app.state.services.metrics.turned_away
        limiter = ConnectionLimiter(
            most=most,
            seconds=self.config.request_timeout,
            turned_away=lambda cause: turned_away.labels(cause).inc(),
        )
        settings = uvicorn.Config(
            app,
            lifespan="on",
            backlog=ACCEPTED_AT_ONCE,
            log_config=None,
            access_log=False,
            http=limiter.protocol(),
            ws="websockets-sansio",
            ws_max_size=WEBSOCKET_LIMIT * self.config.max_frame_bytes,
            ws_ping_interval=PING_EVERY,
            ws_ping_timeout=PING_TIMEOUT,
            ws_per_message_deflate=False,
            server_header=False,
            forwarded_allow_ips=self.config.trusted_proxies,
            timeout_graceful_shutdown=int(self.config.shutdown_timeout) + 1,
        )
        self._server = DrainingServer(settings, app.state.drain, announce)
        self._server.should_exit = self._stopped
        trimming = asyncio.create_task(keep_trimmed())
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            trimming.cancel()
            await asyncio.gather(trimming, return_exceptions=True)


def serve(config: Config, *, migrate: bool = True, on_ready: Callable[[Config], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; see `Service`."""
    Service(config, migrate=migrate).run(on_ready)
