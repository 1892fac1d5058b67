"""A process of connections that mean no good, all of one token; asyncio and raw sockets.

    python -m campaigns.flood.attackers PORT TOKEN COUNT

Opens COUNT connections, each of the next kind in turn, and holds every one until the server ends it or the input of
this process does. Prints how many are open as a line of JSON once all were tried, and what came of each at the end.
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

AT_ONCE = 200  # connections that are being opened
CONNECT_TIMEOUT = 60.0  # seconds
SMALL_BUFFER = 4096  # bytes that a connection takes without being read, about
TRICKLE_EVERY = 1.0  # seconds
UNREAD_ANSWERS = 8
LISTENED_TO = 1024  # bytes of each piece
WORDS = ("too_many_connections", "hello_first", "too many connections are open", "going_away")
"""By which an answer of the server is told."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    name: str
    first: bytes = b""
    """Sent at once."""
    then: bytes = b""
    """Sent when the server has answered."""
    trickles: bool = False
    """One byte more now and then."""
    reads: bool = True


def kinds(port: int, token: str, number: int) -> tuple[Kind, ...]:
    """``number``: of the connection; each that says hello is a run of its own."""
    host = f"Host: 127.0.0.1:{port}\r\n".encode("ascii")
    document = b"GET /api/v1/openapi.json HTTP/1.1\r\n" + host + b"\r\n"
    return (
        Kind(name="says nothing"),
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
    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._over = asyncio.Event()
        self._open = 0
        self._ends: Counter[str] = Counter()

    async def run(self, count: int) -> None:
        held: list[asyncio.Task[None]] = []
        for number in range(count):
            offered = kinds(self._port, self._token, number)
            await self._gate.acquire()
            held.append(asyncio.create_task(self._one(offered[number % len(offered)])))
        for _ in range(AT_ONCE):  # until every one is in or was not let in
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
            end = "not let in"
        finally:
            opened.close()
        self._ends[f"{kind.name}: {end}"] += 1

    async def _hold(self, opened: socket.socket, kind: Kind) -> str:
        """How it ended, and with which words of the server."""
        said = bytearray()
        tasks = [asyncio.create_task(self._over.wait()), asyncio.create_task(_listen(opened, kind, said))]
        if kind.trickles:
            tasks.append(asyncio.create_task(_trickle(opened)))
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            end = "ended by the server" if tasks[1].done() else "open to the end"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return ", ".join([end, *(word for word in WORDS if word.encode("ascii") in said)])


async def _listen(opened: socket.socket, kind: Kind, said: bytearray) -> None:
    """Until the server closes the connection; puts what it says into ``said``."""
    loop = asyncio.get_running_loop()
    # A socket that is not read tells of its end in no other way.
    while not kind.reads and not opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # noqa: ASYNC110
        await asyncio.sleep(TRICKLE_EVERY)
    with contextlib.suppress(OSError):
        while kind.reads and (data := await loop.sock_recv(opened, 65536)):
            if kind.then and not said:
                await loop.sock_sendall(opened, kind.then)
            said += data[:LISTENED_TO]


async def _trickle(opened: socket.socket) -> None:
    while True:
        await asyncio.sleep(TRICKLE_EVERY)
        await asyncio.get_running_loop().sock_sendall(opened, b"x")


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    port, token, count = sys.argv[1:]
    asyncio.run(Attackers(int(port), token).run(int(count)))


if __name__ == "__main__":
    main()
