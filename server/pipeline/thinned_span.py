"""Stretches of a run whose layer statistics the client thinned, for want of disk in an outage. Pure; its state
round-trips through bytes.

Each such record says so (docs/protocol.md, `statistics_thinned`). Between them lie others that kept their statistics,
so a stretch is over after many records in a row without one that lost them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from client_sdk.protocol import STATISTICS_THINNED
from server.models import Event, EventKind, Sample

CALM: Final = 1_000
"""Records in a row with all their statistics that end a stretch."""


class _State(msgspec.Struct):
    attempt: int = 0
    first_step: int | None = None
    """None outside a stretch."""
    last_step: int = 0
    records: int = 0
    calm: int = 0
    """Records since the last one that lost statistics."""


class ThinnedSpan:
    """Not thread-safe."""

    def __init__(self) -> None:
        self._state = _State()

    def update(self, sample: Sample) -> tuple[Event, ...]:
        """The beginning or the end of a stretch, where this sample brings one."""
        state = self._state
        ended = self.end() if sample.attempt != state.attempt else ()
        state.attempt = sample.attempt
        if not sample.scalars.get(STATISTICS_THINNED):
            if state.first_step is None:
                return ended
            state.calm += 1
            return (*ended, *(self.end() if state.calm >= CALM else ()))
        began: tuple[Event, ...] = ()
        if state.first_step is None:
            state.first_step, state.records = sample.step, 0
            began = (Event(step=sample.step, kind=EventKind.STATISTICS_THINNED, attempt=sample.attempt),)
        state.last_step, state.calm = sample.step, 0
        state.records += 1
        return (*ended, *began)

    def end(self) -> tuple[Event, ...]:
        """The stretch is over, if there is one: nothing more comes, or what comes is whole."""
        state = self._state
        if state.first_step is None:
            return ()
        detail = {"from_step": state.first_step, "to_step": state.last_step, "records": state.records}
        state.first_step, state.calm = None, 0
        return (Event(step=state.last_step, kind=EventKind.STATISTICS_COMPLETE, attempt=state.attempt, detail=detail),)

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode(self._state)

    @classmethod
    def restore(cls, data: bytes) -> ThinnedSpan:
        """Raises `ValueError`."""
        span = cls()
        span._state = msgspec.msgpack.decode(data, type=_State)
        return span
