"""A websocket to the server that speaks the protocol's messages.

Owns handshake, token, deadlines, and the translation of everything that can go wrong into `TransportError`; who
reconnects, and when, is the sender's. Proxies and the trust store are the system's, by websockets' defaults.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 - getaddrinfo imports it; a fork while our thread imports leaves children a held lock
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

OPEN_TIMEOUT: Final = 5.0  # seconds, for TCP, TLS and the HTTP handshake together
CLOSE_TIMEOUT: Final = 2.0  # seconds
PING_INTERVAL: Final = 10.0  # seconds
PING_TIMEOUT: Final = 10.0  # seconds without an answer: the connection is dead
READ_BYTES: Final = 64 * 1024  # at once
SEND_TIMEOUT: Final = 20.0  # seconds without any progress of a send: the connection is dead

CLOSE_UNAUTHENTICATED: Final = 4401
CLOSE_FORBIDDEN: Final = 4403
CLOSE_TOO_LARGE: Final = 1009
CLOSE_GOING_AWAY: Final = frozenset({1001, 1012})
UNAUTHENTICATED_HELP: Final = (
    "the server does not accept the token. Pass token=…, or set SPIKEWATCH_TOKEN; on the server's machine "
    "`spikewatch up` leaves one that is found by itself, and `spikewatch token create` makes others"
)

START_HELP: Final = "Start it with `spikewatch up`, or correct url=… or SPIKEWATCH_URL"
TRUST_HELP: Final = "Where the authority is your own, set SSL_CERT_FILE to its certificate"

_quiet: Final = logging.getLogger("client_sdk.websockets")
"""For websockets, which writes a traceback into the log of the training when a ping is not answered. What went wrong
with a connection is for the sender to say."""
_quiet.setLevel(logging.CRITICAL)


class ExactSocket:
    """A socket whose `recv` makes objects of the size of what came.

    `socket.recv` makes one of what was asked for, 64 KiB from websockets, and shrinks it to the few bytes of an
    acknowledgement or an alert. Of those glibc keeps some of every size for the thread instead of joining them with the
    free memory around them, each at the beginning of 64 KiB. Where they lie, the next read does not fit, and takes new
    memory: a megabyte in twenty minutes of a run with alerts, and no object to blame.

    Read by one thread.
    """

    def __init__(self, wrapped: socket.socket) -> None:
        self._wrapped = wrapped
        self._buffer = memoryview(bytearray(READ_BYTES))

    def recv(self, size: int) -> bytes:
        return bytes(self._buffer[: self._wrapped.recv_into(self._buffer[:size])])

    def __getattr__(self, name: str) -> Any:
        """Everything but reading is the socket's own."""
        return getattr(self._wrapped, name)


class _FrugalConnection(ClientConnection):
    """Reads from an `ExactSocket`."""

    def __init__(self, sock: socket.socket, protocol: ClientProtocol, **options: Any) -> None:
        # TLS within the TLS of a proxy is no socket, and reads for itself.
        exact = cast(socket.socket, ExactSocket(sock)) if isinstance(sock, socket.socket) else sock
        super().__init__(exact, protocol, **options)


class Connection:
    """One open websocket. Used by one thread, except `abandon`."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Connect. Raises `TransportError`."""
        token = endpoint.find_token()
        self._stack = contextlib.ExitStack()  # websockets wants its connections used as context managers
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
                create_connection=_FrugalConnection,
                proxy=None if endpoint.is_here else True,  # True: the one that the environment or the system names
                logger=_quiet,
                compression=None,  # float blocks hardly compress, and the time is the training machine's
            )
            self._socket = self._stack.enter_context(socket_context)
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise TransportError("unauthenticated", UNAUTHENTICATED_HELP, retryable=False) from error
            raise unreachable(endpoint, f"does not answer like a Spikewatch server: HTTP status {status}") from error
        except InvalidHandshake as error:
            raise unreachable(endpoint, f"does not answer like a Spikewatch server: {error}") from error
        except RuntimeError as error:  # Python ≥ 3.12 starts no thread any more once the main one has ended
            raise TransportError("exiting", f"no new connection at the end of the process: {error}") from error
        except ssl.SSLCertVerificationError as error:
            raise TransportError("unreachable", f"{endpoint.url} cannot be trusted: {error}. {TRUST_HELP}") from error
        except (OSError, TimeoutError, InvalidURI, EOFError, ImportError) as error:
            # ImportError: a SOCKS proxy without python-socks
            raise unreachable(endpoint, f"cannot be reached: {error}") from error
        # Pings find a peer that is silent, but not one that lets a send hang while it holds websockets' own lock.
        with contextlib.suppress(OSError):
            self._socket.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(SEND_TIMEOUT), 0)
            )

    def send(self, frame: bytes) -> None:
        """Raises `TransportError` when the connection is gone or makes no progress."""
        try:
            self._socket.send(frame)
        except ConnectionClosed as error:
            raise _closed(error) from error

    def receive(self, timeout: float) -> ServerMessage | None:
        """The next message, or None when there is none within ``timeout`` seconds or it is of no known kind.

        Raises `TransportError` when the connection is gone.
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
            return None  # a newer server may say more than we understand

    def close(self) -> None:
        """Close in an orderly way, within `CLOSE_TIMEOUT`."""
        self._stack.close()

    def abandon(self) -> None:
        """Close the file descriptor without a word to the server, which stays connected to the parent process.
        Called in a forked child."""
        with contextlib.suppress(OSError):
            os.close(self._socket.socket.detach())


def unreachable(endpoint: Endpoint, what: str) -> TransportError:
    """No server answered: ``what`` is wrong, and what to do. A proxy is named by its variable alone, as its address may
    hold a password."""
    help_ = START_HELP
    if not endpoint.is_here and not proxy_bypass(endpoint.host):
        names = [f"{scheme}_proxy" for scheme in sorted(getproxies()) if scheme != "no"]
        if names:
            help_ += f". It was asked through a proxy ({', '.join(names)}); NO_PROXY leaves hosts out"
    return TransportError("unreachable", f"{endpoint.url} {what}. {help_}")


def _closed(error: ConnectionClosed) -> TransportError:
    code = None if error.rcvd is None else error.rcvd.code
    if code == CLOSE_UNAUTHENTICATED:
        return TransportError("unauthenticated", UNAUTHENTICATED_HELP, retryable=False)
    if code == CLOSE_FORBIDDEN:
        return TransportError("forbidden", "the token may not write to this project", retryable=False)
    if code == CLOSE_TOO_LARGE:
        return TransportError("too_large", f"the server refused a frame as too large: {error}", retryable=False)
    if code in CLOSE_GOING_AWAY:
        return TransportError("going_away", f"the server goes away: {error}")
    return TransportError("closed", f"the connection was closed: {error}")
