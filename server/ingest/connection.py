"""One connection of one writer, from its hello to its end.

Three tasks serve it. The reader puts frames into a bounded queue and does not read the socket while the queue is full.
The main task takes the frames that have gathered, commits them as one and acknowledges them before it takes more. The
notifier forwards alerts to the writer. Every error is reported in an `Error` frame before the socket closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from client_sdk.protocol import (
    PROTOCOL_VERSION,
    Ack,
    Alert,
    AlertNotice,
    Batch,
    ClientMessage,
    Error,
    Finish,
    Hello,
    ServerMessage,
    Welcome,
    decode_client_message,
    encode,
)
from server.broker import Broker
from server.broker.live_message import RESTORED, RESYNC
from server.errors import UNAVAILABLE, DatabaseError, IngestError
from server.ingest.frames import FrameQueue
from server.ingest.hello import checked
from server.log_actions import LogAction
from server.metrics import Metrics
from server.models import Principal
from server.pipeline.committer import INLINE_BYTES
from server.pipeline.pipeline import Pipeline
from server.pipeline.writer_session import WriterSession, taken
from server.storage.alerts import AlertStore

logger = logging.getLogger(__name__)

CONTENDED_BYTES = 256 * 1024
"""Bytes of frames that share a commit while other writers wait, so that each transaction stays short."""
SEND_TIMEOUT = 30.0  # seconds; a client that does not read its answers is disconnected
CATCH_UP_DELAYS = (0.5, 2.0, 10.0)  # seconds between attempts to read the alerts that a writer may have missed
MAX_CLOSE_REASON = 120  # bytes that fit into a close frame

GOING_AWAY = ("going_away", "the server is shutting down; reconnect and continue")


@dataclass(frozen=True, kw_only=True)
class IngestLimits:
    """Bounds of each connection."""

    frame_bytes: int
    """Largest frame in bytes."""
    group_bytes: int
    """Largest sum of frames that share a commit, in bytes."""
    queued_frames: int
    """Number of frames that are read before they are committed."""
    hello_timeout: float
    """Seconds that a client has to send its first frame."""


class Connection:
    """Serves one accepted socket. Used from the event loop only."""

    def __init__(
        self,
        socket: WebSocket,
        *,
        pipeline: Pipeline,
        broker: Broker,
        alerts: AlertStore,
        limits: IngestLimits,
        metrics: Metrics,
        name: str,
    ) -> None:
        """``name`` identifies this server in `Welcome`."""
        self.ended = asyncio.Event()
        """Set when the connection is over and its tasks have ended."""
        self._socket = socket
        self._pipeline = pipeline
        self._broker = broker
        self._alerts = alerts
        self._limits = limits
        self._metrics = metrics
        self._name = name
        self._pause_after: Callable[[int], float] = lambda _: 0.0
        self._frames = FrameQueue(limits.queued_frames)
        self._session: WriterSession | None = None
        self._reader: asyncio.Task[None] | None = None
        self._notifier: asyncio.Task[None] | None = None
        self._send_lock = asyncio.Lock()
        self._fault: IngestError | None = None
        """Error that ended the reading, reported after everything that was read before it is committed."""

    @property
    def queued_frames(self) -> int:
        """Number of frames that were read and are not committed yet."""
        return len(self._frames)

    async def serve(self, principal: Principal, pause_after: Callable[[int], float]) -> None:
        """Serve the connection until it is over.

        ``pause_after`` is called with the number of values of each commit and returns the seconds to pause, by which
        the rate limit of the token is kept.
        """
        self._pause_after = pause_after
        self._reader = asyncio.create_task(self._read())
        try:
            await self._commit_all(principal)
            if self._fault is not None:
                raise self._fault
        except IngestError as error:
            await self.refuse(error)
        except DatabaseError as error:
            logger.warning(
                "cannot store ingested frames: %s", error, extra={"action": LogAction.INGEST_STORAGE_UNAVAILABLE}
            )
            await self.refuse(IngestError("storage_unavailable", UNAVAILABLE, retryable=True, close_code=1011))
        except TimeoutError:
            logger.warning(
                "closing an ingest connection whose client does not read its answers",
                extra={"action": LogAction.INGEST_SEND_TIMEOUT},
            )
        except Exception:  # reported to the client and logged; no other connection is affected
            logger.exception("cannot handle an ingest frame", extra={"action": LogAction.INGEST_FAILED})
            await self.refuse(
                IngestError("internal", "the server failed on this frame; try again", retryable=True, close_code=1011)
            )
        finally:
            await self._end()

    def drain(self) -> None:
        """Stop reading. What is queued is still committed and acknowledged."""
        self._stop_reading(IngestError(*GOING_AWAY, retryable=True, close_code=1012))

    def dismiss(self, error: IngestError) -> None:
        """End the connection with an error. What was read is still committed and acknowledged."""
        self._stop_reading(error)

    async def refuse(self, error: IngestError) -> None:
        """Report an error to the client and close the socket."""
        self._metrics.refusals.labels(error.code).inc()
        with contextlib.suppress(WebSocketDisconnect, TimeoutError, RuntimeError):  # the client may be gone
            await self._send(Error(code=error.code, message=error.message, retryable=error.retryable))
            await self._socket.close(error.close_code, error.code[:MAX_CLOSE_REASON])

    async def _read(self) -> None:
        fault = None
        try:
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                frame = message.get("bytes")
                if frame is None:
                    fault = IngestError("malformed", "frames must be binary msgpack; this one is text")
                    break
                if len(frame) > self._limits.frame_bytes:
                    limit = self._limits.frame_bytes
                    fault = IngestError(
                        "too_large", f"the frame has {len(frame)} bytes; at most {limit} are allowed", close_code=1009
                    )
                    break
                self._metrics.received_bytes.inc(len(frame))
                await self._frames.put(frame)
        finally:
            if not self._frames.closed:
                self._fault = fault
                self._frames.close()

    def _lose_writer(self) -> None:
        self._stop_reading(taken())

    def _stop_reading(self, fault: IngestError) -> None:
        self._fault = fault
        self._frames.close()
        if self._reader is not None:
            self._reader.cancel()

    async def _commit_all(self, principal: Principal) -> None:
        frames = await self._first_frames()
        while frames:
            is_small = sum(map(len, frames)) <= INLINE_BYTES
            messages, fault = _decode(frames) if is_small else await asyncio.to_thread(_decode, frames)
            waiting: list[Batch] = []
            for number, message in enumerate(messages, 1):
                if isinstance(message, Batch):
                    waiting.append(message)
                    continue
                await self._commit(waiting)
                waiting = []
                if isinstance(message, Hello):
                    await self._greet(message, principal, is_last=number == len(messages))
                else:
                    await self._finish(message)
            await self._commit(waiting)
            if fault is not None:
                raise fault
            is_contended = self._pipeline.committer.is_contended
            frames = await self._frames.take(CONTENDED_BYTES if is_contended else self._limits.group_bytes)

    async def _first_frames(self) -> list[bytes]:
        try:
            async with asyncio.timeout(self._limits.hello_timeout):
                return await self._frames.take(self._limits.group_bytes)
        except TimeoutError:
            seconds = self._limits.hello_timeout
            raise IngestError("hello_first", f"no frame arrived for {seconds:g} s; send hello first") from None

    async def _greet(self, hello: Hello, principal: Principal, *, is_last: bool) -> None:
        """Register the writer of a hello and welcome it. ``is_last`` if no further message was read with it."""

        def is_wanted() -> bool:
            return not is_last or len(self._frames) > 0 or not self._frames.closed

        greeting = checked(hello, principal)
        writers = self._pipeline.writers
        if self._session is not None:
            writers.disconnect(self._session)
        session = await writers.register(greeting, is_wanted)
        session.on_taken = self._lose_writer
        run_id = session.registration.run_id
        same_run = self._session is not None and self._session.registration.run_id == run_id
        self._session = session
        writers.connect(session)
        await self._send(Welcome(run_id=run_id, last_seq=session.last_seq, server=self._name))
        if not same_run:
            if self._notifier is not None:
                self._notifier.cancel()
            self._notifier = asyncio.create_task(self._notify(run_id))

    async def _commit(self, batches: Sequence[Batch]) -> None:
        if not batches:
            return
        try:
            with self._metrics.commit_seconds.time():
                last_seq = await self._pipeline.commit(self._greeted(), batches)
        except IngestError:
            if len(batches) == 1:
                raise
            # An invalid batch must not prevent the valid ones before it from being committed.
            for batch in batches:
                await self._commit([batch])
            return
        await self._send(Ack(seq=last_seq))
        values = _values(batches)
        self._metrics.batches.inc(len(batches))
        self._metrics.values.inc(values)
        pause = self._pause_after(values)
        if pause > 0:
            # While the socket is not read, the client waits and its records stay in its spool: nothing is lost.
            await asyncio.sleep(pause)

    async def _finish(self, message: Finish) -> None:
        session = self._greeted()
        await self._pipeline.finish(session, message)
        await self._send(Ack(seq=session.last_seq))

    def _greeted(self) -> WriterSession:
        if self._session is None:
            raise IngestError("hello_first", "the first frame of a connection must be hello")
        return self._session

    async def _notify(self, run_id: str) -> None:
        alerts = self._broker.subscribe(run_ids=frozenset({run_id}), project=None, types=frozenset({"alert"}))
        async with alerts as subscription:
            await self._catch_up(run_id)
            while True:
                delivery = await subscription.get()
                if delivery.type == "alert":
                    await self._send(_notice(delivery.body()["alert"]))
                elif delivery.type in {RESYNC, RESTORED}:
                    await self._catch_up(run_id)

    async def _catch_up(self, run_id: str) -> None:
        """Send recent alerts that the writer may have missed. The SDK ignores those that it has received before."""
        for delay in (*CATCH_UP_DELAYS, None):
            try:
                for alert in await self._alerts.recent(run_id):
                    await self._send(_notice(alert))
                return
            except DatabaseError as error:
                logger.warning(
                    "cannot read recent alerts for a writer: %s",
                    error,
                    extra={"action": LogAction.INGEST_STORAGE_UNAVAILABLE},
                )
                if delay is not None:
                    await asyncio.sleep(delay)

    async def _send(self, message: ServerMessage) -> None:
        """Send a message. Does nothing if the client is gone: what it sent before is committed all the same."""
        async with self._send_lock, asyncio.timeout(SEND_TIMEOUT):
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await self._socket.send_bytes(encode(message))

    async def _end(self) -> None:
        if self._session is not None:
            self._pipeline.writers.disconnect(self._session)
        for task in (self._reader, self._notifier):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self.ended.set()


def _decode(frames: Sequence[bytes]) -> tuple[list[ClientMessage], IngestError | None]:
    """Return the messages before the first invalid frame, and the error of that frame."""
    messages: list[ClientMessage] = []
    for frame in frames:
        try:
            messages.append(decode_client_message(frame))
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            return messages, _explain(frame, error)
    return messages, None


def _values(batches: Sequence[Batch]) -> int:
    """Return the number of scalars and statistics in the records."""
    return sum(len(record.scalars) + len(record.block or b"") // 4 for batch in batches for record in batch.records)


class _Versioned(msgspec.Struct):
    version: int


def _explain(frame: bytes, error: Exception) -> IngestError:
    """Return the error for a frame that cannot be decoded.

    A hello of another protocol version may have another shape; then the version is the error.
    """
    try:
        version = msgspec.msgpack.decode(frame, type=_Versioned).version
    except (msgspec.DecodeError, RecursionError, ValueError):
        version = PROTOCOL_VERSION
    if version != PROTOCOL_VERSION:
        return IngestError(
            "unsupported_version",
            f"the server uses version {PROTOCOL_VERSION} of the protocol and the client version {version}; "
            "upgrade the older of the two",
        )
    return IngestError("malformed", f"the frame is not a message of this protocol ({error})")


def _notice(alert: object) -> AlertNotice:
    """Return the wire message about an alert of the API, as a value or as JSON."""
    return AlertNotice(alert=msgspec.convert(alert, Alert, from_attributes=True))
