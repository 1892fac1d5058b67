"""One connection of one writer, from its hello to its end.

Three tasks: the reader puts frames into a bounded queue and leaves the socket alone while that is full; the committer
takes what has gathered, commits it as one, acknowledges, and only then takes more; the notifier passes alerts on to the
writer. Whatever is wrong is said in an `Error` frame before the socket closes.
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
from server.metrics import Metrics
from server.models import Principal
from server.pipeline.pipeline import INLINE_BYTES, Pipeline
from server.pipeline.writer_session import Writer, taken
from server.storage.alerts import AlertStore, to_alert

logger = logging.getLogger(__name__)

CONTENDED_BYTES = 256 * 1024
"""Frames that share a commit while others wait for theirs, where a frame is not larger: turns stay short."""
SEND_TIMEOUT = 30.0  # seconds; a client that does not read its answers is let go
CATCH_UP_DELAYS = (0.5, 2.0, 10.0)  # seconds between tries to read what a writer may have missed
MAX_CLOSE_REASON = 120  # bytes that fit a close frame

GOING_AWAY = ("going_away", "the server is shutting down; connect again and go on")


@dataclass(frozen=True, kw_only=True)
class IngestLimits:
    frame_bytes: int
    group_bytes: int
    queued_frames: int
    hello_timeout: float
    """Seconds."""


class Connection:
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
        """``socket`` is accepted. ``name``: what `Welcome` calls this server."""
        self.ended = asyncio.Event()
        self._socket = socket
        self._pipeline = pipeline
        self._broker = broker
        self._alerts = alerts
        self._limits = limits
        self._metrics = metrics
        self._name = name
        self._pause_after: Callable[[int], float] = lambda _: 0.0
        self._frames = FrameQueue(limits.queued_frames)
        self._writer: Writer | None = None
        self._reader: asyncio.Task[None] | None = None
        self._notifier: asyncio.Task[None] | None = None
        self._send_lock = asyncio.Lock()
        self._fault: IngestError | None = None
        """What ended the reading; said after everything that was read before it is committed."""

    @property
    def queued_frames(self) -> int:
        """Frames that were read and are not committed yet."""
        return len(self._frames)

    async def serve(self, principal: Principal, pause_after: Callable[[int], float]) -> None:
        """Returns when the connection is over. ``pause_after``: seconds to read no more, for so many values."""
        self._pause_after = pause_after
        self._reader = asyncio.create_task(self._read())
        try:
            await self._commit_all(principal)
            if self._fault is not None:
                raise self._fault
        except IngestError as error:
            await self.refuse(error)
        except DatabaseError as error:
            logger.warning("ingest: %s", error, extra={"action": "ingest_storage_unavailable"})
            await self.refuse(IngestError("storage_unavailable", UNAVAILABLE, retryable=True, close_code=1011))
        except TimeoutError:
            logger.warning("a client does not read its answers", extra={"action": "ingest_send_timeout"})
        except Exception:  # the boundary of one connection: said to the client, logged, and no other is touched
            logger.exception("ingest failed", extra={"action": "ingest_failed"})
            await self.refuse(
                IngestError("internal", "the server failed on this frame; try again", retryable=True, close_code=1011)
            )
        finally:
            await self._end()

    def drain(self) -> None:
        """Read no more; what is queued is committed."""
        self._stop_reading(IngestError(*GOING_AWAY, retryable=True, close_code=1012))

    def dismiss(self, error: IngestError) -> None:
        """End it; what was read is still committed."""
        self._stop_reading(error)

    async def refuse(self, error: IngestError) -> None:
        """Say what is wrong and close."""
        self._metrics.refusals.labels(error.code).inc()
        with contextlib.suppress(WebSocketDisconnect, TimeoutError, RuntimeError):  # the peer may be gone
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
                    fault = IngestError("malformed", "frames are binary msgpack; this one was text")
                    break
                if len(frame) > self._limits.frame_bytes:
                    limit = self._limits.frame_bytes
                    fault = IngestError(
                        "too_large", f"a frame of {len(frame)} bytes; at most {limit} are allowed", close_code=1009
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
            most = CONTENDED_BYTES if self._pipeline.is_contended else self._limits.group_bytes
            frames = await self._frames.take(most)

    async def _first_frames(self) -> list[bytes]:
        try:
            async with asyncio.timeout(self._limits.hello_timeout):
                return await self._frames.take(self._limits.group_bytes)
        except TimeoutError:
            seconds = self._limits.hello_timeout
            raise IngestError("hello_first", f"nothing came for {seconds:g} s; the first frame is hello") from None

    async def _greet(self, hello: Hello, principal: Principal, *, is_last: bool) -> None:
        """``is_last``: nothing that came with it follows."""

        def is_wanted() -> bool:
            return not is_last or len(self._frames) > 0 or not self._frames.closed

        greeting = checked(hello, principal)
        if self._writer is not None:
            self._pipeline.disconnect(self._writer)
        writer = await self._pipeline.register(greeting, is_wanted)
        writer.on_taken = self._lose_writer
        same_run = self._writer is not None and self._writer.registration.run_id == writer.registration.run_id
        self._writer = writer
        self._pipeline.connect(writer)
        await self._send(Welcome(run_id=writer.registration.run_id, last_seq=writer.last_seq, server=self._name))
        if not same_run:
            if self._notifier is not None:
                self._notifier.cancel()
            self._notifier = asyncio.create_task(self._notify(writer.registration.run_id))

    async def _commit(self, batches: Sequence[Batch]) -> None:
        if not batches:
            return
        try:
            with self._metrics.commit_seconds.time():
                last_seq = await self._pipeline.commit(self._greeted(), batches)
        except IngestError:
            if len(batches) == 1:
                raise
            # A bad batch must not take the good ones before it with it.
            for batch in batches:
                await self._commit([batch])
            return
        await self._send(Ack(seq=last_seq))
        values = _values(batches)
        self._metrics.batches.inc(len(batches))
        self._metrics.values.inc(values)
        pause = self._pause_after(values)
        if pause > 0:
            # UnreadSegments, the socket fills and the client waits; its records wait in its spool, and nothing is lost.
            await asyncio.sleep(pause)

    async def _finish(self, message: Finish) -> None:
        writer = self._greeted()
        await self._pipeline.finish(writer, message)
        await self._send(Ack(seq=writer.last_seq))

    def _greeted(self) -> Writer:
        if self._writer is None:
            raise IngestError("hello_first", "the first frame of a connection is hello")
        return self._writer

    async def _notify(self, run_id: str) -> None:
        alerts = self._broker.subscribe(run_ids=frozenset({run_id}), project=None, types=frozenset({"alert"}))
        async with alerts as subscription:
            await self._catch_up(run_id)
            while True:
                delivery = await subscription.get()
                if delivery.type == "alert":
                    await self._send(AlertNotice(alert=to_alert(delivery.body()["alert"])))
                elif delivery.type in {RESYNC, RESTORED}:
                    await self._catch_up(run_id)

    async def _catch_up(self, run_id: str) -> None:
        """What the writer may have missed. It tells by itself what it has heard before."""
        for delay in (*CATCH_UP_DELAYS, None):
            try:
                for alert in await self._alerts.lately(run_id):
                    await self._send(AlertNotice(alert=to_alert(alert)))
                return
            except DatabaseError as error:
                logger.warning("ingest: alerts are not read: %s", error, extra={"action": "ingest_storage_unavailable"})
                if delay is not None:
                    await asyncio.sleep(delay)

    async def _send(self, message: ServerMessage) -> None:
        """To a peer that is gone nothing is sent: what it sent before is committed all the same."""
        async with self._send_lock, asyncio.timeout(SEND_TIMEOUT):
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await self._socket.send_bytes(encode(message))

    async def _end(self) -> None:
        if self._writer is not None:
            self._pipeline.disconnect(self._writer)
        for task in (self._reader, self._notifier):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self.ended.set()


def _decode(frames: Sequence[bytes]) -> tuple[list[ClientMessage], IngestError | None]:
    """The messages before the first frame that is none, and what is wrong with that one."""
    messages: list[ClientMessage] = []
    for frame in frames:
        try:
            messages.append(decode_client_message(frame))
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            return messages, _explain(frame, error)
    return messages, None


def _values(batches: Sequence[Batch]) -> int:
    """Numbers in the records: scalars and statistics."""
    return sum(len(record.scalars) + len(record.block or b"") // 4 for batch in batches for record in batch.records)


class _Versioned(msgspec.Struct):
    version: int


def _explain(frame: bytes, error: Exception) -> IngestError:
    """A hello of another version may have another shape; then that is what is wrong."""
    try:
        version = msgspec.msgpack.decode(frame, type=_Versioned).version
    except (msgspec.DecodeError, RecursionError, ValueError):
        version = PROTOCOL_VERSION
    if version != PROTOCOL_VERSION:
        return IngestError(
            "unsupported_version",
            f"this server speaks version {PROTOCOL_VERSION} of the protocol, the client {version}; upgrade one",
        )
    return IngestError("malformed", f"the frame is no message of this protocol ({error})")
