"""What a server reads takes the memory of what came, whatever it asked for."""

from __future__ import annotations

import asyncio
import os
import socket
import tracemalloc

from server.serving.exact_listener import READ_BYTES
from server.serving.listener import bind


def test_a_read_makes_no_more_than_what_came() -> None:
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as client:
        listener.setblocking(True)
        connection, address = listener.accept()
        with connection:
            assert address == client.getsockname()
            client.sendall(b"few")
            tracemalloc.start()
            try:
                assert connection.recv(READ_BYTES) == b"few"
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < 4096, "bytes"
            client.sendall(b"12345")
            assert connection.recv(2) == b"12"
            assert connection.recv(READ_BYTES) == b"345"
            client.shutdown(socket.SHUT_WR)
            assert connection.recv(READ_BYTES) == b""


async def test_connections_of_a_loop_get_their_own_bytes() -> None:
    sent = [os.urandom(600_000 + number) for number in range(8)]
    listener = bind("127.0.0.1", 0)
    came: list[bytes] = []

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.read(-1))
        writer.close()

    async def send(data: bytes) -> None:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(read, sock=listener)
    async with server:
        await asyncio.gather(*map(send, sent))
    assert sorted(came) == sorted(sent)
