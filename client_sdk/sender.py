"""Delivers a spool to the server: batches, send window, acknowledgements, reconnection, incoming alerts.

Runs as a daemon thread for a live run, or in the caller's thread for the spool of an earlier process. Reads the spool
and never touches objects of the training. Whatever fails here, training continues and the records stay in the spool.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from client_sdk.config import Endpoint
from client_sdk.errors import TransportError
from client_sdk.protocol import (
    Ack,
    Alert,
    AlertNotice,
    Error,
    Finish,
    Hello,
    RawBatch,
    Record,
    ServerMessage,
    Welcome,
    decode_record,
    encode,
)
from client_sdk.retry import RetrySchedule, backoff
from client_sdk.send_window import SendWindow
from client_sdk.spool.spool import Spool
from client_sdk.transport import UNAUTHENTICATED_HELP, Connection, unreachable
from client_sdk.warner import Warner

FLUSH_INTERVAL: Final = 0.05  # seconds between batches, short enough for a live page
BATCH_BYTES: Final = 1024 * 1024  # of records in one batch; a larger record is sent alone
WELCOME_TIMEOUT: Final = 10.0  # seconds
FINISH_TIMEOUT: Final = 5.0  # seconds for the answer to `finish`

_FRAME_CODES: Final = frozenset({"malformed", "too_large", "bad_record"})
"""Error codes that concern one frame; the others concern the connection."""


class Sender:
    """Sends one spool until it is finished and everything is acknowledged."""

    def __init__(
        self,
        spool: Spool,
        endpoint: Endpoint,
        warner: Warner,
        *,
        on_alert: Callable[[Alert], None] = lambda alert: None,
        gives_up: Callable[[TransportError], bool] = lambda error: False,
        is_stopped: Callable[[], bool] = lambda: False,
        send_earlier: Callable[[Callable[[], bool]], None] = lambda is_stopped: None,
        delays: Callable[[], Iterator[float]] = backoff,
    ) -> None:
        """``gives_up`` ends `run` after an error for which it returns True, and ``is_stopped`` ends it at any time.

        ``send_earlier`` sends the spools that the server must receive first. It is called on the sender thread with a
        function that returns whether to stop. ``delays`` returns the seconds between two connections.
        """
        self._spool = spool
        self._endpoint = endpoint
        self._warner = warner
        self._on_alert = on_alert
        self._gives_up = gives_up
        self._is_stopped = is_stopped
        self._send_earlier = send_earlier
        self._clock = time.monotonic
        self._schedule = RetrySchedule(delays, self._clock)
        self._window = SendWindow(self._clock)
        self._connection: Connection | None = None
        self._sent_hello: Hello | None = None  # the latest hello on this connection
        self._sent_seq = 0  # last sequence sent on this connection
        self._finish_sent_at: float | None = None
        self._isolate_until = 0  # records up to this sequence are sent one at a time, to find a refused one
        self._refused: set[int] = set()
        self._next_flush = 0.0
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._progress = threading.Condition()
        self._thread: threading.Thread | None = None
        self.delivered = False
        """Whether the server has everything, including the finish."""
        self.error: TransportError | None = None
        """Error that ended the last connection; None while connected."""

    # -- called by any thread --

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the server."""
        return self._connection is not None

    @property
    def running(self) -> bool:
        """Whether the thread that `start` created is alive."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def refused(self) -> int:
        """Number of records that the server refused."""
        return len(self._refused)

    def start(self) -> None:
        """Start the daemon thread."""
        self._thread = threading.Thread(target=self.run, name="spikewatch-sender", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Send now instead of at the next interval, and reconnect now instead of after the delay."""
        self._next_flush = 0.0
        self._schedule.retry_now()
        self._wake.set()

    def wait_acknowledged(self, seq: int, timeout: float) -> bool:
        """Wait until everything up to ``seq`` is acknowledged. Returns False after ``timeout`` seconds."""
        with self._progress:
            return self._progress.wait_for(lambda: self._spool.acknowledged >= seq, timeout)

    def wait_delivered(self, timeout: float) -> bool:
        """Wait until everything is delivered, including the finish. Returns False after ``timeout`` seconds."""
        with self._progress:
            return self._progress.wait_for(lambda: self.delivered, timeout)

    def is_refused_until(self, deadline: float) -> bool:
        """Return whether the server refused the client and is not asked again before ``deadline`` (monotonic)."""
        error = self.error
        return error is not None and not error.retryable and self._schedule.waits_until(deadline)

    def stop(self, timeout: float) -> bool:
        """Stop the thread, delivered or not. Returns False if a system call blocks it for ``timeout`` seconds."""
        self._stopped.set()
        self._wake.set()
        return self.join(timeout)

    def join(self, timeout: float) -> bool:
        """Wait until the thread ends: delivered, stopped or given up. Returns False after ``timeout`` seconds."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Release the parent's socket. Called in a forked child, where the thread does not exist."""
        if self._connection is not None:
            self._connection.abandon()

    # -- called on the sender thread --

    def run(self) -> None:
        """Send until everything is delivered, `stop` is called, or ``gives_up`` returns True for an error."""
        try:
            self._send_earlier(self._must_stop)
            while not self._must_stop() and not self.delivered:
                try:
                    self._run_once()
                except TransportError as error:
                    self._disconnect(error)
                    if self._gives_up(error) or error.code == "exiting":
                        break
                except Exception as error:
                    self._warner.caught("sender", "sending to the server", error)
                    self._disconnect(TransportError("internal", f"{type(error).__name__}: {error}"))
        finally:
            self._close()

    def _must_stop(self) -> bool:
        return self._stopped.is_set() or self._is_stopped()

    def _run_once(self) -> None:
        if self._connection is None:
            delay = self._schedule.remaining
            if delay > 0:
                self._wake.wait(min(delay, FLUSH_INTERVAL))
                self._wake.clear()
            else:
                self._open()
            return
        self._send_batches(self._connection)
        self._send_finish(self._connection)
        message = self._connection.receive(max(0.0, self._next_flush - self._clock()))
        if message is not None:
            self._handle(message)

    def _open(self) -> None:
        """Connect, send the hello, and continue after the last record that the server has."""
        connection = Connection(self._endpoint)
        try:
            self._send_hello(connection)
            welcome = self._await_welcome(connection)
            committed = welcome.last_seq + self._spool.meta.base
            if committed + 1 < self._spool.oldest_seq:
                self._warner.warn(
                    "server_lost_data",
                    f"the server has {committed} of {self._spool.acknowledged} records that it acknowledged before; "
                    "the others are lost, and the remaining records are sent under a new writer",
                )
                self._spool.rebase(uuid.uuid4().hex)
                raise TransportError("closed", "reconnecting as a new writer")
        except BaseException:
            connection.close()
            raise
        self._sent_seq = min(committed, self._spool.last_seq)
        self._finish_sent_at = None
        self._connection = connection
        self.error = None
        self._acknowledge(committed)

    def _send_hello(self, connection: Connection) -> None:
        self._sent_hello = self._spool.hello
        connection.send(encode(self._sent_hello))

    def _await_welcome(self, connection: Connection) -> Welcome:
        deadline = self._clock() + WELCOME_TIMEOUT
        while (remaining := deadline - self._clock()) > 0:
            message = connection.receive(min(remaining, FLUSH_INTERVAL))
            if isinstance(message, Welcome):
                return message
            if isinstance(message, AlertNotice):
                self._on_alert(message.alert)
            if isinstance(message, Error):
                raise TransportError(message.code, message.message, retryable=message.retryable)
        raise unreachable(self._endpoint, "did not answer the hello")

    def _send_batches(self, connection: Connection) -> None:
        if self._clock() < self._next_flush:
            return
        while self._window.has_room:
            is_isolating = self._sent_seq < self._isolate_until
            if is_isolating and self._window:
                break
            payloads = self._spool.read(self._sent_seq, min(BATCH_BYTES, self._window.size))
            if is_isolating:
                payloads = payloads[:1]
            if not payloads:
                break
            if self._sent_hello is not self._spool.hello:
                self._send_hello(connection)  # these records may refer to a new layout
            first = self._sent_seq + 1
            records = [
                msgspec.Raw(_blank(payload) if first + i in self._refused else payload)
                for i, payload in enumerate(payloads)
            ]
            frame = encode(RawBatch(first_seq=first - self._spool.meta.base, records=records))
            self._sent_seq += len(payloads)
            self._window.sent(self._sent_seq, len(frame))
            connection.send(frame)
        self._next_flush = self._clock() + FLUSH_INTERVAL

    def _send_finish(self, connection: Connection) -> None:
        finish = self._spool.meta.finish
        if finish is None or self._spool.acknowledged < self._spool.last_seq:
            return
        if self._finish_sent_at is None:
            if self._sent_hello is not self._spool.hello:
                self._send_hello(connection)
            last_seq = self._spool.last_seq - self._spool.meta.base
            connection.send(encode(Finish(last_seq=last_seq, state=finish.state)))
            self._finish_sent_at = self._clock()
        elif self._clock() - self._finish_sent_at > FINISH_TIMEOUT:
            raise TransportError("closed", "the server did not answer the finish")

    def _handle(self, message: ServerMessage) -> None:
        match message:
            case Ack(seq=seq):
                self._schedule.succeeded()
                self._acknowledge(seq + self._spool.meta.base)
                if self._finish_sent_at is not None:
                    self._notify_waiting(delivered=True)
            case Welcome(last_seq=seq):
                self._acknowledge(seq + self._spool.meta.base)
            case AlertNotice(alert=alert):
                self._on_alert(alert)
            case Error():
                raise TransportError(message.code, message.message, retryable=message.retryable)

    def _acknowledge(self, seq: int) -> None:
        was_full = not self._window.has_room or self._sent_seq < self._isolate_until
        self._window.acknowledged(seq)
        if was_full:
            self._next_flush = 0.0
        self._spool.acknowledge(seq)
        self._notify_waiting()

    def _notify_waiting(self, *, delivered: bool = False) -> None:
        with self._progress:
            self.delivered = self.delivered or delivered
            self._progress.notify_all()

    def _disconnect(self, error: TransportError) -> None:
        """Close the connection after ``error``, schedule the next one, and warn."""
        self.error = error
        is_isolating = not error.retryable and error.code in _FRAME_CODES and self._isolate(error)
        self._close()
        self._schedule.failed(error, is_isolating=is_isolating)
        if error.code != "exiting":
            self._warn(error)

    def _warn(self, error: TransportError) -> None:
        kept = f"records are kept in {self._spool.directory or 'memory'} and sent later"
        match error.code:
            case "unauthenticated":
                self._warner.warn(error.code, f"{UNAUTHENTICATED_HELP}. Until then {kept}")
            case "forbidden" | "writer_taken":
                self._warner.warn(error.code, f"{error.message}. Until then {kept}")
            case "unreachable":
                self._warner.warn(error.code, f"{error.message}; {kept}")
            case _ if error.retryable:
                self._warner.note(error.code, str(error))
            case _:
                self._warner.warn(error.code, f"the server refused: {error}; {kept}")

    def _isolate(self, error: TransportError) -> bool:
        """Find the record for which the server refused a frame: send records one at a time, and blank the refused one.

        Returns False if nothing is left to try.
        """
        last_seq = self._window.last_seq
        if not last_seq or last_seq in self._refused:
            return False
        if last_seq <= self._isolate_until:
            self._refused.add(last_seq)
            self._warner.warn("refused_record", f"the server refused a record, which is lost: {error}")
        else:
            self._isolate_until = last_seq
        return True

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        self._window.disconnected()
        if connection is not None:
            connection.close()


def _blank(payload: bytes) -> bytes:
    """Return an encoded record of the same step without content, so that the sequence has no gap."""
    record = decode_record(payload)
    return encode(Record(step=record.step, time=record.time, scalars={}))
