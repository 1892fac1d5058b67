"""An ingest server over real sockets that keeps records in memory and produces faults on demand.

It implements the server's side of docs/protocol.md.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from client_sdk.protocol import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    Ack,
    Alert,
    AlertNotice,
    Batch,
    Error,
    Finish,
    Hello,
    Record,
    Welcome,
    decode_client_message,
    encode,
)


class IngestServer:
    """Context manager that listens on a free port. `stop` and `start` restart it on that port with its records."""

    def __init__(self, *, token: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.token = token
        self.tls = tls
        self.records: dict[str, list[Record]] = {}
        """Committed records by writer, each sequence exactly once."""
        self.hellos: list[Hello] = []
        self.finishes: list[tuple[str, Finish]] = []
        self.order: list[int] = []
        """Ordinal number of the writer of each committed batch."""
        self.batches = 0
        """Number of received batches, including those that were sent again."""
        self.cut_batches: set[int] = set()
        """Ordinal numbers, from 1, of batches whose connection is cut after the commit, without an acknowledgement."""
        self.ignore_batches: set[int] = set()
        """Ordinal numbers, from 1, of batches whose connection is cut before they are committed."""
        self.refuses: Callable[[Record], bool] = lambda record: False
        """Predicate of records for which a batch is answered with `bad_record`."""
        self.error: Error | None = None
        """Error that answers every hello instead of a welcome."""
        self.may_acknowledge = threading.Event()
        """Batches are acknowledged only while this event is set."""
        self.may_acknowledge.set()
        self.port = 0
        self._changed = threading.Condition()
        self._connections: list[ServerConnection] = []
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = serve(
            self._serve,
            "127.0.0.1",
            self.port,
            max_size=MAX_FRAME_BYTES,
            compression=None,
            close_timeout=1,
            ssl=self.tls,
        )
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        assert self._server is not None
        assert self._thread is not None
        self.may_acknowledge.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self.stop()

    def wait_for(self, predicate: Callable[[], object], timeout: float = 20.0) -> None:
        """Wait until ``predicate`` is true; it is evaluated whenever the server has received something."""
        with self._changed:
            assert self._changed.wait_for(lambda: bool(predicate()), timeout), "the server did not receive it in time"

    def all_records(self) -> list[Record]:
        """Return the records of all writers, in the order of the writers' first hellos."""
        return [record for records in self.records.values() for record in records]

    def steps(self) -> list[int]:
        return [record.step for record in self.all_records()]

    def push(self, alert: Alert) -> None:
        """Send an alert to every connected client."""
        for connection in self._connections:
            connection.send(encode(AlertNotice(alert=alert)))

    def dismiss(self, error: Error, close_code: int) -> None:
        """Send an error to every connected client and close the connections."""
        for connection in tuple(self._connections):
            connection.send(encode(error))
            connection.close(close_code)

    def send(self, frame: bytes) -> None:
        """Send any frame to every connected client."""
        for connection in tuple(self._connections):
            connection.send(frame)

    def forget(self) -> None:
        """Delete all records, like a server with a new database."""
        self.records.clear()

    def _serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        try:
            if self.token is not None and connection.request.headers.get("Authorization") != f"Bearer {self.token}":
                connection.recv(5)
                connection.send(encode(Error(code="unauthenticated", message="no such token", retryable=False)))
                connection.close(4401)
                return
            self._connections.append(connection)
            self._converse(connection)
        except ConnectionClosed:
            pass
        finally:
            if connection in self._connections:
                self._connections.remove(connection)

    def _converse(self, connection: ServerConnection) -> None:
        writer = ""
        while True:
            frame = connection.recv()
            assert isinstance(frame, bytes)
            try:
                message = decode_client_message(frame)
            except msgspec.DecodeError as error:
                connection.send(encode(Error(code="malformed", message=str(error), retryable=False)))
                connection.close(4400)
                return
            match message:
                case Hello():
                    writer = message.writer
                    if not self._greet(connection, message):
                        return
                case Batch():
                    if not self._commit(connection, writer, message):
                        return
                case Finish():
                    with self._changed:
                        self.finishes.append((writer, message))
                        self._changed.notify_all()
                    connection.send(encode(Ack(seq=len(self.records[writer]))))

    def _greet(self, connection: ServerConnection, hello: Hello) -> bool:
        assert hello.version == PROTOCOL_VERSION
        assert hello.run_id is not None
        with self._changed:
            self.hellos.append(hello)
            committed = self.records.setdefault(hello.writer, [])
            self._changed.notify_all()
        if self.error is not None:
            connection.send(encode(self.error))
            connection.close(4400)
            return False
        connection.send(encode(Welcome(run_id=hello.run_id, last_seq=len(committed))))
        return True

    def _commit(self, connection: ServerConnection, writer: str, batch: Batch) -> bool:
        self.batches += 1
        if self.batches in self.ignore_batches:
            connection.socket.close()
            return False
        if any(self.refuses(record) for record in batch.records):
            connection.send(encode(Error(code="bad_record", message="the record is refused", retryable=False)))
            connection.close(4400)
            return False
        committed = self.records[writer]
        if batch.first_seq > len(committed) + 1:
            connection.send(encode(Error(code="sequence_gap", message=f"I have {len(committed)}", retryable=True)))
            connection.close(4400)
            return False
        with self._changed:
            self.order.append(list(self.records).index(writer))
            committed.extend(batch.records[len(committed) + 1 - batch.first_seq :])
            self._changed.notify_all()
        if self.batches in self.cut_batches:
            connection.socket.close()
            return False
        self.may_acknowledge.wait(20)
        connection.send(encode(Ack(seq=len(committed))))
        return True
