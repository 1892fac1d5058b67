"""The listening socket, and the limit of open files of this process."""

from __future__ import annotations

import contextlib
import resource
import socket
import sys

from server.errors import ConfigurationError

BACKLOG = 2048
"""Number of connections that may wait in the kernel to be accepted."""
ACCEPTED_AT_ONCE = 1
"""Number of connections that asyncio accepts in one iteration of the event loop.

Each new connection causes work in about a dozen later iterations. When thousands arrive together, accepting them one by
one lets the frames of existing connections pass in between.
"""
RESERVED_FILES = 256
"""Number of file descriptors that are not used for connections."""


def bind(host: str, port: int) -> socket.socket:
    """Return a non-blocking listening socket. Raises `ConfigurationError` with a message for the terminal."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is given because asyncio disables Nagle's algorithm (up to 40 ms per answer) only for explicit TCP.
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


def allow_open_files() -> int:
    """Raise the limit of open files as far as the user may, and return it.

    Every connection needs a file descriptor, and shells start processes with about a thousand.
    """
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems allow less than they report
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if allowed == resource.RLIM_INFINITY else allowed


def room(wanted: int, open_files: int) -> int:
    """Return how many connections may be open, leaving file descriptors to the database and to files.

    >>> room(10_000, 1024)
    768
    """
    return min(wanted, max(open_files - RESERVED_FILES, open_files // 2))
