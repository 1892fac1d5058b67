"""Restriction of a thread to public addresses, for libraries that open connections by themselves.

Whatever a library does with a URL, a redirect or a host name, it finally connects a socket to an address, and Python
raises an audit event before that (PEP 578, ``socket.connect``). One audit hook of the process checks the events of the
guarded threads and ignores all others. Threads that the library starts itself and code that opens sockets without
Python are not covered.
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


class _State(threading.local):
    is_guarded = False
    refused: ForbiddenAddressError | None = None


_state = _State()


@contextlib.contextmanager
def public_addresses_only() -> Iterator[None]:
    """Refuse connections of this thread to other than public addresses within the block.

    A refused connection raises `PermissionError` where it is made, and `ForbiddenAddressError` at the end of the block
    even if the library has swallowed the first error.
    """
    _install()
    _state.is_guarded, _state.refused = True, None
    try:
        yield
    except OSError as error:
        if _state.refused is None:
            raise
        raise _state.refused from error
    else:
        if _state.refused is not None:
            raise _state.refused
    finally:
        _state.is_guarded, _state.refused = False, None


@functools.cache
def _install() -> None:
    """Add the audit hook once, because Python cannot remove one."""
    sys.addaudithook(_hook)


def _hook(name: str, arguments: tuple[Any, ...]) -> None:
    if name != "socket.connect" or not _state.is_guarded:
        return
    address = arguments[1]
    # Any other form than (host, port, …) is a socket of this machine or its devices.
    host = address[0] if isinstance(address, tuple) and isinstance(address[0], str) else "a local socket"
    try:
        allowed = is_public(host)
    except ValueError:
        allowed = False
    if not allowed:
        _state.refused = ForbiddenAddressError(refusal(host))
        raise PermissionError(errno.EACCES, str(_state.refused))  # the error of a firewall, which libraries handle
