"""Stretches of a run in which the client dropped layer statistics because its disk was full during an outage.

Each such record is marked (docs/protocol.md, `statistics_thinned`). Records that kept their statistics lie in between,
so a stretch ends only after many complete records in a row. Pure; the state round-trips through bytes.
"""

from __future__ import annotations

from typing import Final

import msgspec

from client_sdk.protocol import STATISTICS_THINNED
from server.models import Event, EventKind, Sample

MIN_COMPLETE: Final = 1_000
"""Number of complete records in a row that ends a stretch."""


class _State(msgspec.Struct, rename={"complete": "calm"}):  # the name in saved states
    attempt: int = 0
    first_step: int | None = None
    """First step of the stretch, or None outside a stretch."""
    last_step: int = 0
    records: int = 0
    complete: int = 0
    """Number of complete records since the last one without statistics."""


class ThinnedSpan:
    """Detects the begin and the end of thinned stretches. Not thread-safe."""

    def __init__(self) -> None:
        self._state = _State()

    def update(self, sample: Sample) -> tuple[Event, ...]:
        """Return the events of a sample: the begin or the end of a stretch, or both."""
        state = self._state
        if sample.is_late:
            return ()
        ended = self.end() if sample.attempt != state.attempt else ()
        state.attempt = sample.attempt
        if not sample.scalars.get(STATISTICS_THINNED):
            if state.first_step is None:
                return ended
            state.complete += 1
            return (*ended, *(self.end() if state.complete >= MIN_COMPLETE else ()))
        began: tuple[Event, ...] = ()
        if state.first_step is None:
            state.first_step, state.records = sample.step, 0
            began = (Event(step=sample.step, kind=EventKind.STATISTICS_THINNED, attempt=sample.attempt),)
        state.last_step, state.complete = sample.step, 0
        state.records += 1
        return (*ended, *began)

    def end(self) -> tuple[Event, ...]:
        """End the current stretch, if there is one, and return its event."""
        state = self._state
        if state.first_step is None:
            return ()
        detail = {"from_step": state.first_step, "to_step": state.last_step, "records": state.records}
        state.first_step, state.complete = None, 0
        return (Event(step=state.last_step, kind=EventKind.STATISTICS_COMPLETE, attempt=state.attempt, detail=detail),)

    def snapshot(self) -> bytes:
        """Return the state as bytes for `restore`."""
        return msgspec.msgpack.encode(self._state)

    @classmethod
    def restore(cls, data: bytes) -> ThinnedSpan:
        """Return the span of a snapshot. Raises `ValueError` for other bytes."""
        span = cls()
        span._state = msgspec.msgpack.decode(data, type=_State)
        return span
