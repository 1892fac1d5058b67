"""From the values of one `log` to records in the spool.

Owns the line of records whose values are still on their way from a device, and their order. Moved forward by the
training thread inside `log` and by the sender thread in between, whoever comes first.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

import msgspec

from client_sdk.measurement import Measurement, Pending
from client_sdk.metrics import HostCopy
from client_sdk.notices import Notices
from client_sdk.panel import Panel
from client_sdk.protocol import MAX_FRAME_BYTES, MAX_SCALARS, Histograms, Record, encode
from client_sdk.spool import Spool

MAX_STAGED: Final = 1024  # records that wait for a device; beyond them the newest is dropped
MAX_RECORD_BYTES: Final = MAX_FRAME_BYTES - 1024  # leaves room for the batch around it
RESERVE: Final = 1.1  # of the spool's limit, for scalars once blocks no longer fit
POLL: Final = 0.002  # seconds between looks at a device copy while finishing


@dataclass(slots=True, kw_only=True)
class Staged:
    """One call of `log` whose values may still be on a device."""

    step: int
    time: float
    scalars: dict[str, float]
    names: tuple[str, ...] = ()
    """Of the metrics in ``copy``."""
    copy: HostCopy | None = None
    panel: Panel | None = None
    parts: list[tuple[int, Pending]]
    """Measurements with the position of their instrument in ``panel``."""

    def ready(self) -> bool:
        """True when reading the values will not wait."""
        try:
            return (self.copy is None or self.copy.ready()) and all(part.ready() for _, part in self.parts)
        except Exception:
            return True  # reading it raises too, and there it is reported


class Recorder:
    """Turns staged values into records, in order, and appends them to the spool."""

    def __init__(self, spool: Spool, notices: Notices) -> None:
        self._spool = spool
        self._notices = notices
        self._staged: deque[Staged] = deque()
        self._append_lock = threading.Lock()  # held while one record is encoded and appended, never longer
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Records that are not in the spool yet."""
        return len(self._staged)

    def stage(self, staged: Staged) -> None:
        """Put one record at the end of the line, and move forward what is ready. Called on the training thread."""
        if len(self._staged) >= MAX_STAGED:
            self.dropped += 1
            self._notices.warn("staged", f"{MAX_STAGED} records wait for the device; newer ones are dropped meanwhile")
        else:
            self._staged.append(staged)
        self.drain()

    def drain(self) -> None:
        """Move records whose values have landed into the spool. Called from the training and the sender thread."""
        while self._staged:
            with self._append_lock:
                if not self._staged or not self._staged[0].ready():
                    return
                self._keep(self._staged.popleft())

    def land(self, deadline: float) -> bool:
        """Wait until ``deadline`` (monotonic) for what is under way. False when some of it does not come."""
        self.drain()
        while self._staged and time.monotonic() < deadline:
            time.sleep(POLL)
            self.drain()
        return not self._staged

    def discard(self) -> None:
        """Give up what never came from the device."""
        if self._staged:
            self._notices.warn("lost", f"{len(self._staged)} records never came from the device and are lost")
            self.dropped += len(self._staged)
            self._staged.clear()

    def _keep(self, staged: Staged) -> None:
        """Encode and append one record. Append lock must be held by the caller."""
        try:
            record = self._record(staged)
            payload = encode(record)
            pieces = [payload] if len(payload) <= MAX_RECORD_BYTES else self._split(record)
        except Exception as error:
            self.dropped += 1
            self._notices.caught("encode", "recording a step", error)
            return
        for piece in pieces:
            if self._spool.append(piece):
                continue
            self.dropped += 1
            self._notices.warn(
                "spool_full",
                "the spool is full, as the server has not taken records for long; layer statistics are dropped and "
                "scalars kept, until it does",
            )
            self._spool.append(
                encode(msgspec.structs.replace(record, layout=None, block=None, histograms=())), reserve=RESERVE
            )
            return

    def _record(self, staged: Staged) -> Record:
        scalars = staged.scalars
        if staged.copy is not None:
            for name, value in zip(staged.names, staged.copy.values(), strict=True):
                scalars[name] = float(value)
        block: bytes | None = None
        histograms: tuple[Histograms, ...] = ()
        if staged.parts:
            assert staged.panel is not None
            try:
                measured, block, histograms = staged.panel.merge(_results(staged.parts))
                scalars = {**measured, **scalars}
            except Exception as error:
                self._notices.caught("measure", "reading a measurement", error)
        if len(scalars) > MAX_SCALARS:
            self._notices.warn("too_many_scalars", f"{len(scalars)} scalars in one step; only {MAX_SCALARS} are kept")
            scalars = dict(list(scalars.items())[:MAX_SCALARS])
        has_layout = block is not None or bool(histograms)
        return Record(
            step=staged.step,
            time=staged.time,
            scalars=scalars,
            layout=staged.panel.layout.id if has_layout and staged.panel is not None else None,
            block=block,
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
            self._notices.warn(
                "too_large", "a record is larger than a frame may be and is dropped in part; group layers more coarsely"
            )
        return kept


def _results(parts: list[tuple[int, Pending]]) -> list[tuple[int, Measurement]]:
    return [(position, part.result()) for position, part in parts]
