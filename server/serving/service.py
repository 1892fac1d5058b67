"""Runs a server on its own socket, from the check of its database to the last acknowledgement."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import uvicorn

from server.config import Config
from server.errors import ConfigurationError
from server.main import create_app
from server.serving import event_loop
from server.serving.connection_limiter import ConnectionLimiter
from server.serving.listener import ACCEPTED_AT_ONCE, allow_open_files, bind, room
from server.serving.uvicorn_private import DrainingServer, limited_protocol
from server.storage import migrate
from server.storage.database import Database

WEBSOCKET_LIMIT = 4
"""Multiple of the frame limit up to which a frame is still read, so that it can be refused with an error."""
SWITCH_INTERVAL = 0.001
"""Seconds for which a computing thread holds the interpreter lock while others wait.

The default of 5 ms delays the thread that serves the sockets by up to 5 ms per computing thread.
"""
KEEP_ALIVE = 15
"""Seconds after which an idle connection is closed: more than those after which the pools of common clients close it
(httpx and the dashboard: at most 5), so that no request is sent on a connection that is being closed."""
PING_EVERY = 20.0  # seconds
PING_TIMEOUT = 60.0  # seconds; while the queue of a socket is full, its pongs wait unread behind its frames


class Service:
    """A server with its socket, which is bound at construction, so that the port is known before `run`."""

    def __init__(self, config: Config, *, migrate: bool) -> None:
        """Bind the address. ``migrate`` upgrades the schema at the start; otherwise an outdated schema is refused.

        Raises `ConfigurationError` if the address cannot be bound.
        """
        self._socket = bind(config.host, config.port)
        self.config = config.with_port(self._socket.getsockname()[1])
        self._migrate = migrate
        self._server: DrainingServer | None = None
        self._stopped = False
        self.ready = threading.Event()
        """Set when the server accepts connections."""

    def run(self, on_ready: Callable[[Config], None] | None = None) -> None:
        """Serve until `stop`, SIGTERM or SIGINT, in this thread.

        Raises `DatabaseError` or `ConfigurationError` if the server cannot start.
        """
        sys.setswitchinterval(SWITCH_INTERVAL)
        max_open = room(self.config.max_connections, allow_open_files())
        try:
            event_loop.run(self._serve(max_open, on_ready))
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Finish what is in progress and let `run` return. May be called from any thread."""
        self._stopped = True
        if self._server is not None:
            self._server.should_exit = True

    async def _serve(self, max_open: int, on_ready: Callable[[Config], None] | None) -> None:
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
            max_open=max_open,
            seconds=self.config.request_timeout,
            turned_away=lambda cause: turned_away.labels(cause).inc(),
        )
        settings = uvicorn.Config(
            app,
            lifespan="on",
            backlog=ACCEPTED_AT_ONCE,
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
            http=limited_protocol(limiter),
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
        await self._server.serve(sockets=[self._socket])


def serve(config: Config, *, migrate: bool = True, on_ready: Callable[[Config], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, as `Service` does."""
    Service(config, migrate=migrate).run(on_ready)
