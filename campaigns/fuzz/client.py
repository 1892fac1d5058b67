"""A websocket client that can send arbitrary bytes. Asyncio; implements only the necessary part of RFC 6455."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass

from client_sdk.protocol import AlertNotice, ServerMessage, decode_server_message

ANSWER_TIMEOUT = 60.0  # seconds
BINARY, CLOSE, PING = 2, 8, 9


@dataclass(frozen=True, kw_only=True)
class Closed:
    """The end of a connection."""

    code: int | None
    """Code of the close frame, or None if the connection was cut."""


def handshake(port: int, token: str) -> bytes:
    """Return the HTTP request that opens the ingest socket."""
    return (
        f"GET /api/v1/ingest HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode("ascii")


def frame(payload: bytes) -> bytes:
    """Return a binary frame of a client with the given payload."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | BINARY, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 | BINARY, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | BINARY, 0x80 | 127, size)
    return head + b"\0\0\0\0" + payload  # a mask of zeros changes nothing


class Socket:
    """A connection to the ingest endpoint. Use as an async context manager."""

    def __init__(self, port: int, token: str) -> None:
        """Prepare a connection to ``port`` on the loopback interface."""
        self._port = port
        self._token = token

    async def __aenter__(self) -> Socket:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(handshake(self._port, self._token))
        answer = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), ANSWER_TIMEOUT)
        assert answer.startswith(b"HTTP/1.1 101"), answer
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def send(self, payload: bytes) -> None:
        """Send a binary frame."""
        self.send_raw(frame(payload))

    def send_raw(self, data: bytes) -> None:
        """Send bytes without a frame."""
        self._writer.write(data)

    async def drain(self) -> None:
        """Wait until the kernel has accepted most of what was sent."""
        await self._writer.drain()

    async def answer(self) -> ServerMessage | Closed:
        """Return the next message of the server, skipping alerts.

        Raises `TimeoutError` if none arrives in time, and `msgspec.DecodeError` if it is not a message of the protocol.
        """
        async with asyncio.timeout(ANSWER_TIMEOUT):
            while True:
                try:
                    opcode, payload = await self._frame()
                except (asyncio.IncompleteReadError, OSError):
                    return Closed(code=None)
                if opcode == CLOSE:
                    return Closed(code=struct.unpack("!H", payload[:2])[0] if payload else None)
                if opcode == BINARY:
                    message = decode_server_message(payload)
                    if not isinstance(message, AlertNotice):
                        return message

    async def _frame(self) -> tuple[int, bytes]:
        first, size = await self._reader.readexactly(2)
        if size >= 126:
            size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8), "big")
        return first & 0x0F, await self._reader.readexactly(size)
