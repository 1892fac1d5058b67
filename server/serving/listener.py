"""The listening socket, and as many open files as this user may have."""

from __future__ import annotations

import contextlib
import resource
import socket
import sys

from server.errors import ConfigurationError
from server.serving.exact_listener import ExactListener

BACKLOG = 2048
"""Connections that may wait to be accepted."""
ACCEPTED_AT_ONCE = 1
"""Of them, in one turn of the event loop. Each that comes in is work in a dozen turns to come: of thousands that come
together so many dozens stand before the next frame of a connection that is there, and the others wait outside."""
RESERVED_FILES = 256
"""Descriptors that connections leave to everything else."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ConfigurationError` in words for the terminal."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP: asyncio turns the delay of small packets (40 ms an answer) off only where the socket says so.
    listener = ExactListener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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


def allow_open_files() -> int:
    """Take as many file descriptors as this user may, for every connection needs one and shells start with a thousand.

    How many these are.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if allowed == resource.RLIM_INFINITY else allowed


def room(wanted: int, open_files: int) -> int:
    """Connections that may be open: as many as wanted, as long as databases and files have their descriptors."""
    return min(wanted, max(open_files - RESERVED_FILES, open_files // 2))
