"""Runs the dashboard on its own socket, in a process without a server."""

from __future__ import annotations

import os
from collections.abc import Callable

import uvicorn

from server.assembly.dashboard import make_dashboard
from server.config import Config
from server.serving import event_loop
from server.serving.connection_limiter import ConnectionLimiter
from server.serving.listener import ACCEPTED_AT_ONCE, allow_open_files, bind, room
from server.serving.uvicorn_private import DrainingServer, limited_protocol


def serve_dashboard(config: Config, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve the dashboard of the server that SPIKEWATCH_URL names, until SIGTERM or SIGINT.

    Users log in with a token or the password of that server. ``on_ready`` is called with the address of the dashboard.
    Raises `ConfigurationError`.
    """
    listener = bind(config.host, config.port)
    try:
        config = config.with_port(listener.getsockname()[1])
        limiter = ConnectionLimiter(
            max_open=room(config.max_connections, allow_open_files()), seconds=config.request_timeout
        )
        uvicorn_config = uvicorn.Config(
            make_dashboard(os.environ, config.port),
            lifespan="on",
            backlog=ACCEPTED_AT_ONCE,
            log_config=None,
            access_log=False,
            http=limited_protocol(limiter),
            ws="websockets-sansio",
            server_header=False,
            forwarded_allow_ips=config.trusted_proxies,
        )

        async def drain() -> None:  # pages hold no data
            return None

        def announce() -> None:
            if on_ready is not None:
                on_ready(config.open_url)

        event_loop.run(DrainingServer(uvicorn_config, drain, announce).serve(sockets=[listener]))
    finally:
        listener.close()
