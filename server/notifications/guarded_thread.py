"""Threads of a library that connects by itself, held to public addresses.

Whatever a library does with a URL, with a redirect, or with a name that leads elsewhere at the second look: in the end
it connects a socket to an address, and the interpreter tells of that before it happens (PEP 578, ``socket.connect``).
One hook for the process looks at what the guarded threads are about to do, and at nobody else. Not held are threads
that the library starts on its own, and code that opens sockets without Python.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import sys
import threading
from collections.abc import Iterator
from typing import Any

from server.errors import ForbiddenAddressError
from server.notifications.addresses import is_public, refusal


class _Held(threading.local):
    is_guarded = False
    refused: ForbiddenAddressError | None = None


_held = _Held()


@contextlib.contextmanager
def public_addresses_only() -> Iterator[None]:
    """In this thread. A refused connection raises `PermissionError` where it is made, and `ForbiddenAddressError` at
    the end of the block, whatever the library made of it."""
    _install()
    _held.is_guarded, _held.refused = True, None
    try:
        yield
    except OSError as error:
        if _held.refused is None:
            raise
        raise _held.refused from error
    else:
        if _held.refused is not None:
            raise _held.refused
    finally:
        _held.is_guarded, _held.refused = False, None


@functools.cache
def _install() -> None:
    """Once: the interpreter never lets go of a hook."""
    sys.addaudithook(_hook)


def _hook(name: str, arguments: tuple[Any, ...]) -> None:
    if name != "socket.connect" or not _held.is_guarded:
        return
    address = arguments[1]
    # Anything but (host, port, …) is a socket of this machine, or of its devices.
    host = address[0] if isinstance(address, tuple) and isinstance(address[0], str) else "a local socket"
    try:
        allowed = is_public(host)
    except ValueError:
        allowed = False
    if not allowed:
        _held.refused = ForbiddenAddressError(refusal(host))
        raise PermissionError(errno.EACCES, str(_held.refused))  # as a firewall would: libraries clean up after that
