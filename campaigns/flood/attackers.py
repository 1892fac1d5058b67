"""A process that opens many abusive connections with one token; asyncio and raw sockets.

    python -m campaigns.flood.attackers PORT TOKEN COUNT

Opens COUNT connections, each of the next kind in turn, and holds every one until the server or the standard input of
this process ends. Prints how many are open as a line of JSON once all have been tried, and how each ended at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import sys
from collections import Counter
from dataclasses import dataclass

from campaigns.fuzz.client import frame, handshake
from campaigns.fuzz.mutations import hello

AT_ONCE = 200  # connections that are being opened at a time
CONNECT_TIMEOUT = 60.0  # seconds
SMALL_BUFFER = 4096  # bytes that a connection accepts without being read, approximately
TRICKLE_EVERY = 1.0  # seconds
UNREAD_ANSWERS = 8
MAX_KEPT = 1024  # bytes of each chunk received
WORDS = ("too_many_connections", "hello_first", "too many connections are open", "going_away")
"""Texts that identify an answer of the server."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Behaviour of an abusive connection."""

    name: str
    """Name in the report."""
    first: bytes = b""
    """Bytes that are sent at once."""
    then: bytes = b""
    """Bytes that are sent when the server has answered."""
    trickles: bool = False
    """Whether one more byte is sent every second."""
    reads: bool = True
    """Whether the answers are read."""


def kinds(port: int, token: str, number: int) -> tuple[Kind, ...]:
    """Return the kinds of connections; ``number`` distinguishes the runs of those with a hello."""
    host = f"Host: 127.0.0.1:{port}\r\n".encode("ascii")
    document = b"GET /api/v1/openapi.json HTTP/1.1\r\n" + host + b"\r\n"
    return (
        Kind(name="silent"),
        Kind(name="head byte by byte", first=b"GET /healthz HTTP/1.1\r\n" + host + b"X-Slow: ", trickles=True),
        Kind(
            name="body byte by byte",
            first=b"POST /api/v1/sessions HTTP/1.1\r\n" + host + b"Content-Length: 100000\r\n\r\n",
            trickles=True,
        ),
        Kind(name="reads no answer", first=document * UNREAD_ANSWERS, reads=False),
        Kind(name="socket without hello", first=handshake(port, token)),
        Kind(name="socket with hello", first=handshake(port, token), then=frame(hello(f"flood-{number}", "flood"))),
    )


class Attackers:
    """Abusive connections of one process."""

    def __init__(self, port: int, token: str) -> None:
        """Prepare connections to ``port`` on the loopback interface."""
        self._port = port
        self._token = token
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._over = asyncio.Event()
        self._open = 0
        self._ends: Counter[str] = Counter()

    async def run(self, count: int) -> None:
        """Open ``count`` connections, hold them until the standard input ends, and print their ends."""
        held: list[asyncio.Task[None]] = []
        for number in range(count):
            offered = kinds(self._port, self._token, number)
            await self._gate.acquire()
            held.append(asyncio.create_task(self._one(offered[number % len(offered)])))
        for _ in range(AT_ONCE):  # until every connection is open or was refused
            await self._gate.acquire()
        print(json.dumps({"open": self._open}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        self._over.set()
        await asyncio.gather(*held)
        print(json.dumps(dict(sorted(self._ends.items()))), flush=True)

    async def _one(self, kind: Kind) -> None:
        opened = socket.socket()
        opened.setblocking(False)
        if not kind.reads:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        loop = asyncio.get_running_loop()
        try:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await loop.sock_connect(opened, ("127.0.0.1", self._port))
                    await loop.sock_sendall(opened, kind.first)
            finally:
                self._gate.release()
            self._open += 1
            end = await self._hold(opened, kind)
            self._open -= 1
        except (OSError, TimeoutError):
            end = "not accepted"
        finally:
            opened.close()
        self._ends[f"{kind.name}: {end}"] += 1

    async def _hold(self, opened: socket.socket, kind: Kind) -> str:
        """Hold a connection and return how it ended, with the known texts that the server sent."""
        received = bytearray()
        tasks = [asyncio.create_task(self._over.wait()), asyncio.create_task(_listen(opened, kind, received))]
        if kind.trickles:
            tasks.append(asyncio.create_task(_trickle(opened)))
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            end = "ended by the server" if tasks[1].done() else "open to the end"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return ", ".join([end, *(word for word in WORDS if word.encode("ascii") in received)])


async def _listen(opened: socket.socket, kind: Kind, received: bytearray) -> None:
    """Wait until the server closes the connection, and append what it sends to ``received``."""
    loop = asyncio.get_running_loop()
    # A socket that is not read reports its end in no other way.
    while not kind.reads and not opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # noqa: ASYNC110
        await asyncio.sleep(TRICKLE_EVERY)
    with contextlib.suppress(OSError):
        while kind.reads and (data := await loop.sock_recv(opened, 65536)):
            if kind.then and not received:
                await loop.sock_sendall(opened, kind.then)
            received += data[:MAX_KEPT]


async def _trickle(opened: socket.socket) -> None:
    while True:
        await asyncio.sleep(TRICKLE_EVERY)
        await asyncio.get_running_loop().sock_sendall(opened, b"x")


def main() -> None:
    """Open the connections that the command line asks for."""
    _, max_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files))
    port, token, count = sys.argv[1:]
    asyncio.run(Attackers(int(port), token).run(int(count)))


if __name__ == "__main__":
    main()
