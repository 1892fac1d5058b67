"""Local HTTP server that records requests and gives prepared answers."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

WAIT = 20.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Posted:
    """A received request."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float
    """Unix time of the arrival."""

    @property
    def json(self) -> Any:
        """The body as decoded JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Prepared answer to a request."""

    status: int
    body: str = ""
    headers: Mapping[str, str] | None = None
    hang: bool = False
    """Whether to answer only when the postbox is closed."""
    cut: bool = False
    """Whether to close the connection without an answer."""


class Postbox:
    """Server that answers 200 unless another answer is prepared. A context manager."""

    def __init__(self) -> None:
        self.requests: list[Posted] = []
        self._prepared: list[Prepared] = []
        self._standing = Prepared(status=200)
        self._arrived = threading.Condition()
        self.closing = threading.Event()
        postbox = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                postbox.take(self, Posted(path=self.path, headers=dict(self.headers), body=body, at=time.time()))

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="postbox")

    @property
    def port(self) -> int:
        """Port on 127.0.0.1."""
        return int(self._server.server_address[1])

    def url(self, path: str = "/hook") -> str:
        """Return the URL of a path on this server."""
        return f"http://127.0.0.1:{self.port}{path}"

    def answer(self, status: int, body: str = "", *, times: int = 1, **more: Any) -> None:
        """Prepare the answer to the next ``times`` requests."""
        with self._arrived:
            self._prepared += [Prepared(status=status, body=body, **more)] * times

    def always(self, status: int, body: str = "", **more: Any) -> None:
        """Set the answer to all requests that no other answer is prepared for."""
        with self._arrived:
            self._standing = Prepared(status=status, body=body, **more)

    def wait(self, count: int, timeout: float = WAIT) -> list[Posted]:
        """Wait for ``count`` requests, and return all that have arrived."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.requests) >= count, timeout), (
                f"{len(self.requests)} of {count} requests arrived within {timeout} s"
            )
            return list(self.requests)

    def wait_for(self, wanted: Callable[[Posted], bool], timeout: float = WAIT) -> Posted:
        """Wait for a request that satisfies a condition, and return the first one."""
        with self._arrived:
            found = self._arrived.wait_for(lambda: next(filter(wanted, self.requests), None), timeout)
            assert found is not None, f"none of {len(self.requests)} requests satisfies the condition"
            return found

    def take(self, handler: BaseHTTPRequestHandler, posted: Posted) -> None:
        """Record a request and answer it. Called from the thread of its connection."""
        with self._arrived:
            prepared = self._prepared.pop(0) if self._prepared else self._standing
        prepared = self.reply_to(posted, prepared)
        with self._arrived:
            self.requests.append(posted)
            self._arrived.notify_all()
        if prepared.hang:
            self.closing.wait(WAIT)
            prepared = Prepared(status=200, cut=True)
        if prepared.cut:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        content = prepared.body.encode()
        handler.send_response(prepared.status)
        for name, value in (prepared.headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("Connection", "close")  # otherwise threads would go on answering after the end
        handler.end_headers()
        handler.wfile.write(content)

    def reply_to(self, posted: Posted, prepared: Prepared) -> Prepared:
        """Return the answer to a request; subclasses override this to compute it."""
        del posted
        return prepared

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT)
