"""The dashboard on its own socket, in a process without a server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import uvicorn

from server.assembly.dashboard import make_dashboard
from server.config import Config
from server.serving.connection_limiter import ConnectionLimiter
from server.serving.draining_server import DrainingServer
from server.serving.listener import ACCEPTED_AT_ONCE, allow_open_files, bind, room


def serve_dashboard(config: Config, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve the dashboard alone, beside a server that SPIKEWATCH_URL names, until SIGTERM or SIGINT.

    Whoever logs in does so with a token or the password of that server. Raises `ConfigurationError`.
    """
    listener = bind(config.host, config.port)
    try:
        config = config.with_port(listener.getsockname()[1])
        limiter = ConnectionLimiter(
            most=room(config.max_connections, allow_open_files()), seconds=config.request_timeout
        )
        uvicorn_config = uvicorn.Config(
            make_dashboard(os.environ, config.port),
            lifespan="on",
            backlog=ACCEPTED_AT_ONCE,
            log_config=None,
            access_log=False,
            http=limiter.protocol(),
            ws="websockets-sansio",
            server_header=False,
            forwarded_allow_ips=config.trusted_proxies,
        )

        async def nothing_in_flight() -> None:
            return None

        def announce() -> None:
            if on_ready is not None:
                on_ready(config.open_url)

        asyncio.run(DrainingServer(uvicorn_config, nothing_in_flight, announce).serve(sockets=[listener]))
    finally:
        listener.close()
