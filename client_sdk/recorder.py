"""Turns the values of each `log` into a record of the spool.

Owns the queue of records whose values are still being copied from a device, their order, and the thread that writes
them. The training thread writes a record itself if all of its values are on the host and no earlier record waits.
Otherwise the recorder's thread writes it, at most `DRAIN_INTERVAL` after the copies of this and all earlier records
have completed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, cast

import msgspec

from client_sdk.instrument_set import InstrumentSet
from client_sdk.measurement import HostCopy, Pending
from client_sdk.metrics import MetricReader
from client_sdk.protocol import MAX_FRAME_BYTES, MAX_SCALARS, Audit, Histograms, Record, encode, encode_into
from client_sdk.spool.spool import Spool
from client_sdk.spool.thinning import strip
from client_sdk.warner import Warner

DRAIN_INTERVAL: Final = 0.05  # seconds between two looks at the queue
MAX_STAGED: Final = 1024  # records that wait for a device; beyond them the newest is dropped
MAX_RECORD_BYTES: Final = MAX_FRAME_BYTES - 1024  # leaves room for the frame around it
RESERVE: Final = 1.1  # of the spool's limit, for scalars when blocks no longer fit
COPY_POLL: Final = 0.002  # seconds between two checks of a device copy in `flush`; a CUDA event has no timed wait
DRAIN_PAUSE: Final = 0.0002  # seconds for other threads between two records of the queue
STOP_TIMEOUT: Final = 2.0  # seconds

Listener = Callable[[Mapping[str, float]], None]
"""A function that receives the scalars of each record."""


class Staged(msgspec.Struct):
    """The values of one call of `log`, some of which may still be on a device.

    This is a struct because every `log` creates one, and a dataclass takes three times as long.
    """

    step: int
    time: float
    scalars: dict[str, float]
    """Values on the host, as `MetricReader.read` returned them."""
    names: tuple[str, ...]
    """Names of the values in ``copy``."""
    copy: HostCopy | None
    """Values of the user's tensors on a device."""
    instrument_set: InstrumentSet | None
    """Instruments that were attached at this step."""
    parts: list[tuple[int, Pending]]
    """Measurements, each with the position of its instrument in ``instrument_set``."""

    def ready(self) -> bool:
        """Return whether the values can be read without waiting."""
        try:
            if self.copy is not None and not self.copy.ready():
                return False
            for _, part in self.parts:  # noqa: SIM110 - a generator would cost `log` microseconds
                if not part.ready():
                    return False
            return True
        except Exception:
            return True  # reading the values raises too, and reports the error


class Recorder:
    """Writes staged values as records, in order, to the spool."""

    def __init__(self, spool: Spool, reader: MetricReader, warner: Warner) -> None:
        self._spool = spool
        self._reader = reader
        self._warner = warner
        self._queue: deque[Staged] = deque()
        self._append_lock = threading.Lock()  # held while one record is appended to the spool, never longer
        self._buffer = bytearray()  # encoded record of `stage`; guarded by the append lock
        self._drain_lock = threading.Lock()  # held by the thread that drains the queue
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._logs_norm = False  # whether the user has logged a gradient norm
        self.listeners: tuple[Listener, ...] = ()
        """Functions that receive the scalars of each record once they are on the host; quick, and called from any
        thread."""
        self.dropped = 0
        """Number of records that were lost in whole or in part."""

    @property
    def waiting(self) -> int:
        """Number of records that are not in the spool yet."""
        return len(self._queue)

    def start(self) -> None:
        """Start the daemon thread."""
        self._thread = threading.Thread(target=self._work, name="spikewatch-recorder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT)
        self._report()

    def stage(self, staged: Staged) -> None:
        """Write one record, or add it to the queue. Called on the training thread."""
        queue = self._queue
        if not queue and staged.ready():
            with self._append_lock:
                if not queue:
                    self._append(*self._encode(staged, self._buffer))
                    return
        # The queue needs no lock: only this method appends, and only the holder of the drain lock removes. A lock would
        # take a sixth of the time of a call between two training steps, when its code is in no cache.
        if len(queue) < MAX_STAGED:
            queue.append(staged)
        else:
            self.dropped += 1
            self._warner.warn(
                "staged", f"{MAX_STAGED} records wait for the device; until it catches up, newer ones are dropped"
            )
        if len(queue) > MAX_STAGED // 2 and not self._drain_lock.locked():
            self.drain()  # the recorder's thread alone is too slow for this training

    def drain(self, pause: float = 0.0) -> None:
        """Write records from the head of the queue until one is still being copied. Called from any thread.

        Handles only the records that are in the queue at the call, because a training that logs without a pause would
        never leave it empty. Sleeps for ``pause`` seconds between two records while the queue is short.
        """
        with self._drain_lock:
            for _ in range(len(self._queue)):
                if not self._queue[0].ready():
                    return
                encoded = self._encode(self._queue[0])
                with self._append_lock:
                    self._append(*encoded)
                    self._queue.popleft()
                if pause and len(self._queue) < MAX_STAGED // 4:
                    time.sleep(pause)

    def drain_if_free(self) -> None:
        """Write records from the head of the queue that are ready, unless another thread is doing so."""
        if self._queue and self._queue[0].ready() and not self._drain_lock.locked():
            self.drain()

    def flush(self, deadline: float) -> bool:
        """Write all records of the queue, waiting for device copies until ``deadline`` (monotonic).

        Returns False if some did not complete.
        """
        self.drain()
        while self._queue and time.monotonic() < deadline:
            time.sleep(COPY_POLL)
            self.drain()
        return not self._queue

    def discard(self) -> None:
        """Drop the records whose device copies have not completed."""
        with self._drain_lock, self._append_lock:
            if self._queue:
                self._warner.warn(
                    "lost", f"{len(self._queue)} records are lost, because the device never delivered their values"
                )
                self.dropped += len(self._queue)
                self._queue.clear()

    def _work(self) -> None:
        while not self._stopped.wait(DRAIN_INTERVAL):
            try:
                self.drain(DRAIN_PAUSE)
                self._spool.maintain()
                self._report()
            except Exception as error:
                self._warner.caught("recorder", "writing records", error)

    def _report(self) -> None:
        """Report the spool's trouble, which has no access to the warner."""
        spool = self._spool
        if spool.failure is not None:
            failure, spool.failure = spool.failure, None
            self._warner.warn(
                "disk",
                f"the spool {spool.directory} cannot be written ({failure}); records are kept in memory and lost if "
                "the process dies. Free disk space or set SPIKEWATCH_DIR to another disk",
            )
        if spool.thinned:
            self._warner.warn(
                "thinned",
                f"the spool {spool.directory} is nearly full, because the server has not accepted records for a long "
                "time: its layer statistics are thinned to every 2nd, 4th … step; scalars stay complete",
            )

    def _encode(
        self, staged: Staged, buffer: bytearray | None = None
    ) -> tuple[Record | None, Sequence[bytes | bytearray]]:
        """Return the record and its encoded pieces, or None and no piece if it cannot be encoded.

        ``buffer`` is reused for the encoded record.
        """
        try:
            record = self._record(staged)
            payload: bytes | bytearray
            if buffer is None:
                payload = encode(record)
            else:
                encode_into(record, buffer)
                payload = buffer
            return record, (payload,) if len(payload) <= MAX_RECORD_BYTES else self._split(record)
        except Exception as error:
            self.dropped += 1
            self._warner.caught("encode", "recording a step", error)
            return None, []

    def _append(self, record: Record | None, pieces: Sequence[bytes | bytearray]) -> None:
        """Append the pieces of one record to the spool. The append lock must be held by the caller."""
        for piece in pieces:
            if self._spool.append(piece):
                continue
            assert record is not None
            self.dropped += 1
            self._warner.warn(
                "spool_full",
                "the spool is full, because the server has not accepted records for a long time; until it does, layer "
                "statistics are dropped and scalars are kept",
            )
            self._spool.append(encode(strip(record)), reserve=RESERVE)
            return

    def _record(self, staged: Staged) -> Record:
        scalars = self._reader.checked(staged.scalars)
        if staged.copy is not None:
            for name, value in zip(staged.names, staged.copy.array().tolist(), strict=True):
                scalars[name] = float(value)
        block: memoryview | None = None
        histograms: tuple[Histograms, ...] = ()
        if staged.parts:
            assert staged.instrument_set is not None
            try:
                measured, block, histograms = staged.instrument_set.read(staged.parts)
                if measured:
                    if "grad_norm" in measured:
                        self._name_norm(measured, scalars)
                    scalars = {**measured, **scalars}
            except Exception as error:
                self._warner.caught("measure", "reading a measurement", error)
        if len(scalars) > MAX_SCALARS:
            self._warner.warn(
                "too_many_scalars", f"{len(scalars)} scalars were logged at one step; only {MAX_SCALARS} are kept"
            )
            scalars = dict(list(scalars.items())[:MAX_SCALARS])
        audit: Audit | None = None
        if staged.instrument_set is not None:
            staged.instrument_set.observe(scalars)
            audit = staged.instrument_set.audit(staged.step, scalars)
        for listener in self.listeners:
            listener(scalars)
        has_layout = block is not None or bool(histograms)
        return Record(
            step=staged.step,
            time=staged.time,
            scalars=scalars,
            layout=staged.instrument_set.layout.id if has_layout and staged.instrument_set is not None else None,
            block=cast("bytes | None", block),  # has the same encoding, and the record is not kept
            histograms=histograms,
            audit=audit,
        )

    def _name_norm(self, measured: dict[str, float], scalars: Mapping[str, float]) -> None:
        """Give the measured gradient norm a name of its own in a run that logs a `grad_norm` itself.

        The user's norm is usually that before clipping. Once there was one, the names stay apart for the rest of the
        run, so that no series alternates between the two.
        """
        self._logs_norm = self._logs_norm or "grad_norm" in scalars
        if self._logs_norm:
            measured["grad_norm_after_clip"] = measured.pop("grad_norm")

    def _split(self, record: Record) -> list[bytes]:
        """Return a record that is too large for a frame as several of the same step, without pieces that still are."""
        parts = [msgspec.structs.replace(record, histograms=())]
        parts += [
            Record(step=record.step, time=record.time, scalars={}, layout=record.layout, histograms=(histograms,))
            for histograms in record.histograms
        ]
        pieces = [encode(part) for part in parts]
        kept = [piece for piece in pieces if len(piece) <= MAX_RECORD_BYTES]
        if len(kept) < len(pieces):
            self.dropped += 1
            self._warner.warn(
                "too_large",
                "a record is larger than a frame may be and is dropped in part; use coarser groups of layers",
            )
        return kept
