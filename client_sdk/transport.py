"""A websocket connection to the server that sends and receives messages of the protocol.

Owns the handshake, the token, the deadlines, and the translation of every failure into `TransportError`. The sender
decides when to reconnect. Proxies and the trust store are those of the system, which `websockets` uses by default.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 - getaddrinfo imports it; a fork during an import leaves the child a locked module
import logging
import os
import socket
import ssl
import struct
from typing import Any, Final, cast
from urllib.request import getproxies, proxy_bypass

import msgspec
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_websocket

from client_sdk.config import Endpoint
from client_sdk.errors import TransportError
from client_sdk.protocol import MAX_FRAME_BYTES, ServerMessage, decode_server_message

OPEN_TIMEOUT: Final = 5.0  # seconds for TCP, TLS and the HTTP handshake together
CLOSE_TIMEOUT: Final = 2.0  # seconds
PING_INTERVAL: Final = 10.0  # seconds
PING_TIMEOUT: Final = 10.0  # seconds without an answer, after which the connection is dead
READ_BYTES: Final = 64 * 1024  # in one read
SEND_TIMEOUT: Final = 20.0  # seconds without progress of a send, after which the connection is dead

CLOSE_UNAUTHENTICATED: Final = 4401
CLOSE_FORBIDDEN: Final = 4403
CLOSE_TOO_LARGE: Final = 1009
CLOSE_GOING_AWAY: Final = frozenset({1001, 1012})
UNAUTHENTICATED_HELP: Final = (
    "the server does not accept the token. Pass token=… or set SPIKEWATCH_TOKEN. `spikewatch token create` creates a "
    "token; on the server's own machine the one that `spikewatch up` stores is found automatically"
)

START_HELP: Final = "Start it with `spikewatch up`, or correct url=… or SPIKEWATCH_URL"
TRUST_HELP: Final = "If the certificate authority is your own, set SSL_CERT_FILE to its certificate"

_quiet: Final = logging.getLogger("client_sdk.websockets")
"""Logger for `websockets`, which would log a traceback when a ping is not answered; the sender reports such errors."""
_quiet.setLevel(logging.CRITICAL)


class ExactSocket:
    """A socket whose `recv` allocates only as many bytes as it received.

    `socket.recv` allocates as many bytes as it was asked for, 64 KiB by websockets, and shrinks the object to the few
    bytes of an acknowledgement or an alert. When such objects are freed, glibc keeps some of each size in a cache of
    the thread instead of merging them with the free memory behind them, so that the next read of 64 KiB does not fit
    there and takes new memory: a megabyte in twenty minutes of a run with alerts.

    Used by one thread.
    """

    def __init__(self, wrapped: socket.socket) -> None:
        self._wrapped = wrapped
        self._buffer = memoryview(bytearray(READ_BYTES))

    def recv(self, size: int) -> bytes:
        """Return at most ``size`` received bytes."""
        return bytes(self._buffer[: self._wrapped.recv_into(self._buffer[:size])])

    def __getattr__(self, name: str) -> Any:
        """Delegate everything except `recv` to the wrapped socket."""
        return getattr(self._wrapped, name)


class _ExactConnection(ClientConnection):
    """A websocket connection that reads from an `ExactSocket`."""

    def __init__(self, sock: socket.socket, protocol: ClientProtocol, **options: Any) -> None:
        # TLS inside the TLS of a proxy is not a socket and needs no wrapper.
        exact = cast(socket.socket, ExactSocket(sock)) if isinstance(sock, socket.socket) else sock
        super().__init__(exact, protocol, **options)


class Connection:
    """One open websocket. One thread uses it; `abandon` is called in a forked child."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Connect to the server. Raises `TransportError`."""
        token = endpoint.find_token()
        self._stack = contextlib.ExitStack()  # `websockets` requires connections to be used as context managers
        try:
            socket_context = connect_websocket(
                endpoint.socket_url,
                additional_headers={"Authorization": f"Bearer {token}"} if token is not None else None,
                open_timeout=OPEN_TIMEOUT,
                close_timeout=CLOSE_TIMEOUT,
                ping_interval=PING_INTERVAL,
                ping_timeout=PING_TIMEOUT,
                max_size=MAX_FRAME_BYTES,
                max_queue=1024,  # acknowledgements and alerts, small
                create_connection=_ExactConnection,
                proxy=None if endpoint.is_local else True,  # True: the proxy of the environment or the system
                logger=_quiet,
                compression=None,  # blocks of floats hardly compress, and compression takes time from training
            )
            self._socket = self._stack.enter_context(socket_context)
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise TransportError("unauthenticated", UNAUTHENTICATED_HELP, retryable=False) from error
            raise unreachable(endpoint, f"does not answer like a Spikewatch server: HTTP status {status}") from error
        except InvalidHandshake as error:
            raise unreachable(endpoint, f"does not answer like a Spikewatch server: {error}") from error
        except RuntimeError as error:  # Python ≥ 3.12 starts no thread once the main thread has ended
            raise TransportError("exiting", f"the ending process cannot open a connection: {error}") from error
        except ssl.SSLCertVerificationError as error:
            raise TransportError("unreachable", f"{endpoint.url} cannot be trusted: {error}. {TRUST_HELP}") from error
        except (OSError, TimeoutError, InvalidURI, EOFError, ImportError) as error:
            # An ImportError means that a SOCKS proxy is set and python-socks is not installed.
            raise unreachable(endpoint, f"cannot be reached: {error}") from error
        # Pings detect a silent peer, but not a send that blocks while it holds the lock of `websockets`.
        with contextlib.suppress(OSError):
            self._socket.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(SEND_TIMEOUT), 0)
            )

    def send(self, frame: bytes) -> None:
        """Send one frame. Raises `TransportError` if the connection is closed or makes no progress."""
        try:
            self._socket.send(frame)
        except ConnectionClosed as error:
            raise _closed(error) from error

    def receive(self, timeout: float) -> ServerMessage | None:
        """Return the next message, or None if none comes within ``timeout`` seconds or its type is unknown.

        Raises `TransportError` if the connection is closed.
        """
        try:
            frame = self._socket.recv(timeout)
        except TimeoutError:
            return None
        except ConnectionClosed as error:
            raise _closed(error) from error
        if isinstance(frame, str):
            return None
        try:
            return decode_server_message(frame)
        except msgspec.DecodeError:
            return None  # a newer server may send messages that this client does not support

    def close(self) -> None:
        """Close the connection with a closing handshake, within `CLOSE_TIMEOUT` seconds."""
        self._stack.close()

    def abandon(self) -> None:
        """Close the file descriptor in a forked child; the connection of the parent process stays open."""
        with contextlib.suppress(OSError):
            os.close(self._socket.socket.detach())


def unreachable(endpoint: Endpoint, problem: str) -> TransportError:
    """Return the error for a server that does not answer; ``problem`` says what is wrong.

    The message says what to do. It names a proxy by its environment variable only, because its address may contain a
    password.
    """
    help_ = START_HELP
    if not endpoint.is_local and not proxy_bypass(endpoint.host):
        names = [f"{scheme}_proxy" for scheme in sorted(getproxies()) if scheme != "no"]
        if names:
            help_ += f". The request went through a proxy ({', '.join(names)}); list the host in NO_PROXY to bypass it"
    return TransportError("unreachable", f"{endpoint.url} {problem}. {help_}")


def _closed(error: ConnectionClosed) -> TransportError:
    code = None if error.rcvd is None else error.rcvd.code
    if code == CLOSE_UNAUTHENTICATED:
        return TransportError("unauthenticated", UNAUTHENTICATED_HELP, retryable=False)
    if code == CLOSE_FORBIDDEN:
        return TransportError("forbidden", "the token may not write to this project", retryable=False)
    if code == CLOSE_TOO_LARGE:
        return TransportError("too_large", f"the server refused a frame as too large: {error}", retryable=False)
    if code in CLOSE_GOING_AWAY:
        return TransportError("going_away", f"the server is going away: {error}")
    return TransportError("closed", f"the connection was closed: {error}")
