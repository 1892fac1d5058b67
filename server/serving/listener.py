"""The listening socket, and as many open files as this user may have."""

from __future__ import annotations

import contextlib
import resource
import socket

from server.errors import ConfigurationError

BACKLOG = 2048
"""Connections that may wait to be accepted."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ConfigurationError` in words for the terminal."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP: asyncio turns the delay of small packets (40 ms an answer) off only where the socket says so.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ConfigurationError(
            f"cannot listen on {host}:{port} ({reason}); choose another port with --port or SPIKEWATCH_PORT"
        ) from error
    listener.setblocking(False)
    return listener


def allow_open_files() -> None:
    """Take as many file descriptors as this user may: every connection needs one, and shells start with a thousand."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
