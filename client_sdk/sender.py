"""Delivers a spool to the server: batches, window, acknowledgements, reconnection, incoming alerts.

Runs as one daemon thread for a live run, or in the caller's thread for what an earlier process left. Reads the spool,
never the training process's objects. The third of the places that catch `Exception`: whatever happens here, training
goes on and the records stay in the spool.
"""

from __future__ import annotations

import random
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
from client_sdk.send_window import Window
from client_sdk.spool.spool import Spool
from client_sdk.transport import UNAUTHENTICATED_HELP, Connection, unreachable
from client_sdk.warner import Warner

FLUSH_INTERVAL: Final = 0.05  # seconds between batches, so that a page is live
BATCH_BYTES: Final = 1024 * 1024  # of records in one batch; a single larger record travels alone
WELCOME_TIMEOUT: Final = 10.0  # seconds
FINISH_TIMEOUT: Final = 5.0  # seconds for the answer to `finish`
REFUSED_DELAY: Final = 60.0  # seconds until a server that refused us is asked again
TAKEN_DELAY: Final = 5.0  # seconds until we say again that we are a writer which somebody else says to be, too

_FRAME_CODES: Final = frozenset({"malformed", "too_large", "bad_record"})
"""Errors about one frame; the others are about the session."""


def backoff(first: float = 0.5, longest: float = 15.0) -> Iterator[float]:
    """Endless delays in seconds: doubling, jittered so that clients do not return all at once."""
    delay = first
    while True:
        yield delay * random.uniform(0.5, 1.0)
        delay = min(longest, delay * 2)


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
        earlier: Callable[[Callable[[], bool]], None] = lambda is_stopped: None,
        delays: Callable[[], Iterator[float]] = backoff,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``gives_up`` ends `run` on errors after which the caller does not want to try again, ``is_stopped`` at any
        time. ``earlier`` sends what the server must have before; it is told how to find out that `stop` was called."""
        self._spool = spool
        self._endpoint = endpoint
        self._warner = warner
        self._on_alert = on_alert
        self._gives_up = gives_up
        self._is_stopped = is_stopped
        self._earlier = earlier
        self._delays_of = delays
        self._delays = delays()
        self._clock = clock
        self._connection: Connection | None = None
        self._introduced: Hello | None = None  # the hello that the connection has seen last
        self._sent = 0  # last sequence sent on this connection
        self._window = Window(clock)
        self._careful_until = 0  # up to this sequence records travel alone, to find one that the server refuses
        self._refused: set[int] = set()
        self._finish_sent_at: float | None = None
        self._next_flush = 0.0
        self._retry_at = 0.0
        self._may_move_on = True
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._progress = threading.Condition()
        self._thread: threading.Thread | None = None
        self.delivered = False
        """True once the server has everything, the finish included."""
        self.error: TransportError | None = None
        """Why the last connection failed; None while connected."""

    # -- any thread --

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def running(self) -> bool:
        """True while the thread that `start` made goes on."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the daemon thread."""
        self._thread = threading.Thread(target=self.run, name="spikewatch-sender", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Send now instead of at the next interval, and try a lost connection now instead of after its delay."""
        self._next_flush = self._retry_at = 0.0
        self._wake.set()

    def wait_acknowledged(self, seq: int, timeout: float) -> bool:
        """Wait until everything up to ``seq`` is acknowledged. False when ``timeout`` seconds went by first."""
        with self._progress:
            return self._progress.wait_for(lambda: self._spool.acknowledged >= seq, timeout)

    def wait_delivered(self, timeout: float) -> bool:
        """Wait until the finish is delivered too. False when ``timeout`` seconds went by first."""
        with self._progress:
            return self._progress.wait_for(lambda: self.delivered, timeout)

    def rests_until(self, deadline: float) -> bool:
        """True when the server refused us, and is not asked again before ``deadline``: there is nothing to wait for."""
        error = self.error
        return error is not None and not error.retryable and self._retry_at >= deadline

    def stop(self, timeout: float) -> bool:
        """End the thread, delivered or not. False when it is still in a system call after ``timeout`` seconds."""
        self._stopped.set()
        self._wake.set()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Let go of the parent's socket. Called in a forked child, where the thread does not exist."""
        if self._connection is not None:
            self._connection.abandon()

    # -- the sender thread --

    def run(self) -> None:
        """Send until everything is delivered, `stop` is called or an error is given up on."""
        try:
            self._earlier(self._must_stop)
            while not self._must_stop() and not self.delivered:
                try:
                    self._turn()
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

    def _turn(self) -> None:
        if self._connection is None:
            delay = self._retry_at - self._clock()
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
        """Connect, introduce ourselves, and go on from what the server has."""
        connection = Connection(self._endpoint)
        try:
            self._introduce(connection)
            welcome = self._await_welcome(connection)
            committed = welcome.last_seq + self._spool.meta.base
            if committed + 1 < self._spool.oldest_seq:
                self._warner.warn(
                    "server_lost_data",
                    f"the server has {committed} of {self._spool.acknowledged} records that it acknowledged before; "
                    "those that it lost are gone, the rest follows under a new writer",
                )
                self._spool.rebase(uuid.uuid4().hex)
                raise TransportError("closed", "reconnecting as a new writer")
        except BaseException:
            connection.close()
            raise
        self._sent = min(committed, self._spool.last_seq)
        self._finish_sent_at = None
        self._connection = connection
        self.error = None
        self._acknowledge(committed)

    def _introduce(self, connection: Connection) -> None:
        self._introduced = self._spool.hello
        connection.send(encode(self._introduced))

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
            careful = self._sent < self._careful_until
            if careful and self._window:
                break
            payloads = self._spool.read(self._sent, min(BATCH_BYTES, self._window.size))
            if careful:
                payloads = payloads[:1]
            if not payloads:
                break
            if self._introduced is not self._spool.hello:
                self._introduce(connection)  # a layout that these records refer to is new
            first = self._sent + 1
            records = [
                msgspec.Raw(_blank(payload) if first + i in self._refused else payload)
                for i, payload in enumerate(payloads)
            ]
            frame = encode(RawBatch(first_seq=first - self._spool.meta.base, records=records))
            self._sent += len(payloads)
            self._window.sent(self._sent, len(frame))
            connection.send(frame)
        self._next_flush = self._clock() + FLUSH_INTERVAL

    def _send_finish(self, connection: Connection) -> None:
        finish = self._spool.meta.finish
        if finish is None or self._spool.acknowledged < self._spool.last_seq:
            return
        if self._finish_sent_at is None:
            if self._introduced is not self._spool.hello:
                self._introduce(connection)
            last_seq = self._spool.last_seq - self._spool.meta.base
            connection.send(encode(Finish(last_seq=last_seq, state=finish.state)))
            self._finish_sent_at = self._clock()
        elif self._clock() - self._finish_sent_at > FINISH_TIMEOUT:
            raise TransportError("closed", "the server did not answer the finish")

    def _handle(self, message: ServerMessage) -> None:
        match message:
            case Ack(seq=seq):
                self._delays = self._delays_of()
                self._may_move_on = True
                self._acknowledge(seq + self._spool.meta.base)
                if self._finish_sent_at is not None:
                    self._announce(delivered=True)
            case Welcome(last_seq=seq):
                self._acknowledge(seq + self._spool.meta.base)
            case AlertNotice(alert=alert):
                self._on_alert(alert)
            case Error():
                raise TransportError(message.code, message.message, retryable=message.retryable)

    def _acknowledge(self, seq: int) -> None:
        was_full = not self._window.has_room or self._sent < self._careful_until
        self._window.acknowledged(seq)
        if was_full:
            self._next_flush = 0.0
        self._spool.acknowledge(seq)
        self._announce()

    def _announce(self, *, delivered: bool = False) -> None:
        with self._progress:
            self.delivered = self.delivered or delivered
            self._progress.notify_all()

    def _disconnect(self, error: TransportError) -> None:
        """Put the error into words once, and decide when to try again."""
        self.error = error
        if error.code == "going_away" and self._may_move_on:
            delay, self._may_move_on = 0.0, False  # somebody else answers at this address, or will soon
        elif error.code == "writer_taken":
            delay = TAKEN_DELAY
        elif error.retryable:
            delay = next(self._delays)
        elif error.code in _FRAME_CODES and self._isolate(error):
            delay = 0.0
        else:
            delay = REFUSED_DELAY
        self._close()
        self._retry_at = self._clock() + delay
        if error.code == "exiting":
            return
        kept = f"records are kept in {self._spool.directory or 'memory'} and sent later"
        if error.code in ("unauthenticated", "forbidden"):
            detail = UNAUTHENTICATED_HELP if error.code == "unauthenticated" else error.message
            self._warner.warn(error.code, f"{detail}. Until then {kept}")
        elif error.code == "unreachable":
            self._warner.warn(error.code, f"{error.message}; {kept}")
        elif error.code == "writer_taken":
            self._warner.warn(error.code, f"{error.message}. Until then {kept}")
        elif error.retryable:
            self._warner.note(error.code, str(error))
        else:
            self._warner.warn(error.code, f"the server refused: {error}; {kept}")

    def _isolate(self, error: TransportError) -> bool:
        """The server refused a frame: send its records one by one; blank the one that it refuses when alone.

        False when there is nothing left to try."""
        last = self._window.last
        if not last:
            return False
        if last in self._refused:
            return False
        if last <= self._careful_until:
            self._refused.add(last)
            self._warner.warn("refused_record", f"the server refused a record, which is lost: {error}")
        else:
            self._careful_until = last
        return True

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        self._window.lost()
        if connection is not None:
            connection.close()

    @property
    def refused(self) -> int:
        """Records that the server would not take."""
        return len(self._refused)


def _blank(payload: bytes) -> bytes:
    """A record of the same step without content, so that the sequence has no hole."""
    record = decode_record(payload)
    return encode(Record(step=record.step, time=record.time, scalars={}))
