"""From the values of one `log` to records in the spool.

Owns the line of records whose values are still on their way from a device, their order, and the thread that moves the
line on: a record is written by the training thread when all its values are on the host and no earlier one waits, else
by that thread, within `PERIOD` of the moment when the copies of this and all earlier records have landed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, cast

import msgspec

from client_sdk.measurement import HostCopy, Pending
from client_sdk.metrics import MetricReader
from client_sdk.panel import Panel
from client_sdk.protocol import MAX_FRAME_BYTES, MAX_SCALARS, Histograms, Record, encode, encode_into
from client_sdk.spool.spool import Spool
from client_sdk.spool.thinning import strip
from client_sdk.warner import Warner

PERIOD: Final = 0.05  # seconds between looks at the line
MAX_STAGED: Final = 1024  # records that wait for a device; beyond them the newest is dropped
MAX_RECORD_BYTES: Final = MAX_FRAME_BYTES - 1024  # leaves room for the batch around it
RESERVE: Final = 1.1  # of the spool's limit, for scalars once blocks no longer fit
POLL: Final = 0.002  # seconds between looks at a device copy while finishing
BREATH: Final = 0.0002  # seconds for other threads between two records of the line
STOP_TIMEOUT: Final = 2.0  # seconds


class Staged(msgspec.Struct):
    """One call of `log` whose values may still be on a device. A struct, as it is made in every `log`: that takes a
    third of a dataclass's time."""

    step: int
    time: float
    scalars: dict[str, float]
    """As `MetricReader.read` gave them."""
    names: tuple[str, ...]
    """Of the metrics in ``copy``."""
    copy: HostCopy | None
    panel: Panel | None
    parts: list[tuple[int, Pending]]
    """Measurements with the position of their instrument in ``panel``."""

    def ready(self) -> bool:
        """True when reading the values will not wait."""
        try:
            if self.copy is not None and not self.copy.ready():
                return False
            for _, part in self.parts:  # noqa: SIM110 - a generator would cost `log` microseconds
                if not part.ready():
                    return False
            return True
        except Exception:
            return True  # reading it raises too, and there it is reported


class Recorder:
    """Turns staged values into records, in order, and appends them to the spool."""

    def __init__(self, spool: Spool, reader: MetricReader, warner: Warner) -> None:
        self._spool = spool
        self._reader = reader
        self._warner = warner
        self._line: deque[Staged] = deque()
        self._append_lock = threading.Lock()  # held while one record is put into the spool, never longer
        self._buffer = bytearray()  # the last record that `stage` wrote; append lock
        self._drain_lock = threading.Lock()  # held by whoever moves the line on, never by `stage`
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Records that are not in the spool yet."""
        return len(self._line)

    def start(self) -> None:
        """Start the daemon thread."""
        self._thread = threading.Thread(target=self._work, name="spikewatch-recorder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT)
        self._report()

    def stage(self, staged: Staged) -> None:
        """Write one record, or put it at the end of the line. Called on the training thread."""
        line = self._line
        if not line and staged.ready():
            with self._append_lock:
                if not line:
                    self._append(*self._encode(staged, self._buffer))
                    return
        # The line needs no lock: its end is this side's, its head that of who holds the drain lock. Taking one would
        # cost a call between two steps of training, whose caches hold something else, a sixth of its time.
        if len(line) < MAX_STAGED:
            line.append(staged)
        else:
            self.dropped += 1
            self._warner.warn("staged", f"{MAX_STAGED} records wait for the device; newer ones are dropped meanwhile")
        if len(line) > MAX_STAGED // 2 and not self._drain_lock.locked():
            self.drain()  # the thread alone is too slow for this training

    def drain(self, breath: float = 0.0) -> None:
        """Write the records at the head of the line whose values have landed, of those that are in it now: a training
        without pauses would keep its thread here for ever. Called from any thread, which rests for ``breath`` seconds
        between two of them while the line is short."""
        with self._drain_lock:
            for _ in range(len(self._line)):
                if not self._line[0].ready():
                    return
                encoded = self._encode(self._line[0])
                with self._append_lock:
                    self._append(*encoded)
                    self._line.popleft()
                if breath and len(self._line) < MAX_STAGED // 4:
                    time.sleep(breath)

    def land(self, deadline: float) -> bool:
        """Wait until ``deadline`` (monotonic) for what is under way. False when some of it does not come."""
        self.drain()
        while self._line and time.monotonic() < deadline:
            time.sleep(POLL)
            self.drain()
        return not self._line

    def discard(self) -> None:
        """Give up what never came from the device."""
        with self._drain_lock, self._append_lock:
            if self._line:
                self._warner.warn("lost", f"{len(self._line)} records never came from the device and are lost")
                self.dropped += len(self._line)
                self._line.clear()

    def _work(self) -> None:
        while not self._stopped.wait(PERIOD):
            try:
                self.drain(BREATH)
                self._spool.maintain()
                self._report()
            except Exception as error:
                self._warner.caught("recorder", "writing what came from the device", error)

    def _report(self) -> None:
        """Say what the spool cannot say itself."""
        spool = self._spool
        if spool.failure is not None:
            failure, spool.failure = spool.failure, None
            self._warner.warn(
                "disk",
                f"the spool {spool.directory} cannot be written ({failure}); records are kept in memory, and lost if "
                "the process dies. Make room or set SPIKEWATCH_DIR to another disk",
            )
        if spool.thinned:
            self._warner.warn(
                "thinned",
                f"the spool {spool.directory} is nearly full, as the server has not taken records for long: the layer "
                "statistics in it are thinned to every 2nd, 4th … step; scalars stay complete",
            )

    def _encode(
        self, staged: Staged, buffer: bytearray | None = None
    ) -> tuple[Record | None, Sequence[bytes | bytearray]]:
        """The record and its encoded pieces, in ``buffer`` if need be; none when it cannot be encoded."""
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
        """Append lock must be held by the caller."""
        for piece in pieces:
            if self._spool.append(piece):
                continue
            assert record is not None
            self.dropped += 1
            self._warner.warn(
                "spool_full",
                "the spool is full, as the server has not taken records for long; layer statistics are dropped and "
                "scalars kept, until it does",
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
            assert staged.panel is not None
            try:
                measured, block, histograms = staged.panel.read(staged.parts)
                if measured:
                    scalars = {**measured, **scalars}
            except Exception as error:
                self._warner.caught("measure", "reading a measurement", error)
        if len(scalars) > MAX_SCALARS:
            self._warner.warn("too_many_scalars", f"{len(scalars)} scalars in one step; only {MAX_SCALARS} are kept")
            scalars = dict(list(scalars.items())[:MAX_SCALARS])
        has_layout = block is not None or bool(histograms)
        return Record(
            step=staged.step,
            time=staged.time,
            scalars=scalars,
            layout=staged.panel.layout.id if has_layout and staged.panel is not None else None,
            block=cast("bytes | None", block),  # encodes alike, and nobody keeps it
            histograms=histograms,
        )

    def _split(self, record: Record) -> list[bytes]:
        """A record too large for a frame as several of the same step; what is too large by itself is dropped."""
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
                "too_large", "a record is larger than a frame may be and is dropped in part; group layers more coarsely"
            )
        return kept
