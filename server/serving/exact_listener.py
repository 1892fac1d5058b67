"""A listening socket whose connections keep of each read the bytes that came, and nothing more.

asyncio reads 256 KiB at a time: `socket.recv` makes an object of that size and then shrinks it to the few bytes of a
heartbeat or a request. What is kept of it pins the memory behind it, which no later read of that size fits into: in a
server that runs for weeks the holes come to many megabytes, and there is no object to blame. Here the bytes come into
one buffer first, and the object is as large as they are.
"""

from __future__ import annotations

import socket
from typing import Any

READ_BYTES = 256 * 1024  # what asyncio asks for


class ExactListener(socket.socket):
    """Its connections are read by one thread, that of the event loop that accepts them: they share a buffer."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._buffer = memoryview(bytearray(READ_BYTES))

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        return _ExactConnection(self._buffer, connection.detach()), address


class _ExactConnection(socket.socket):
    def __init__(self, buffer: memoryview, descriptor: int) -> None:
        super().__init__(fileno=descriptor)
        self._buffer = buffer

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        count = self.recv_into(self._buffer[:size], 0, flags)
        return bytes(self._buffer[:count])
