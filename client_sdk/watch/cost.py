"""The cost of measuring and the time of a training step, from clocks that never make training wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch

MAX_UNREAD: Final = 8  # measurements whose device time has not arrived; beyond them the oldest is not read


class CostMeter:
    """Stopwatch of the measurements of one watcher. Called on the training thread.

    The cost of a measurement is the time of the host, and on CUDA the device time between two events around the
    measuring as well, as the host does not wait for the device. The events are read only once they have occurred.
    """

    def __init__(self, device: torch.device | None) -> None:
        """Measure on ``device``; None means the host alone."""
        self._device = device if device is not None and device.type == "cuda" else None
        self._on_host = 0.0  # seconds of the measurement under way
        self._on_device: list[tuple[Any, Any]] = []  # its events
        self._unread: deque[_Measurement] = deque(maxlen=MAX_UNREAD)
        self._own = 0.0  # seconds of the host that were spent since the last step
        self._ended_at: float | None = None

    @contextmanager
    def part(self) -> Iterator[None]:
        """Measure one of the parts of a measurement."""
        begin = None if self._device is None else self._event()
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._on_host += seconds
            self._own += seconds
            if begin is not None:
                self._on_device.append((begin, self._event()))

    def end_measurement(self) -> None:
        """End a measurement, all of whose parts have been measured."""
        self._unread.append(_Measurement(self._on_host, self._on_device))
        self._on_host, self._on_device = 0.0, []

    def spent(self, seconds: float) -> None:
        """Take in time of the host for reading a measurement, such as that of building its block."""
        self._own += seconds
        self._on_host += seconds  # counts with the next one, as this one may have been read

    def excluded(self, seconds: float) -> None:
        """Take in time of the host that belongs neither to training nor to the layer statistics."""
        self._own += seconds

    def end_step(self) -> float | None:
        """Return the seconds since the end of the previous step that training took itself; None at the first step."""
        now = time.perf_counter()
        before, self._ended_at = self._ended_at, now
        own, self._own = self._own, 0.0
        return None if before is None else max(0.0, now - before - own)

    def costs(self) -> list[float]:
        """Return the costs in seconds that have become known since the last call."""
        known = []
        while self._unread and all(end.query() for _, end in self._unread[0].on_device):
            found = self._unread.popleft()
            known.append(found.on_host + sum(begin.elapsed_time(end) for begin, end in found.on_device) / 1000)
        return known

    def _event(self) -> Any:
        with torch.cuda.device(self._device):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return event


class _Measurement(NamedTuple):
    on_host: float
    on_device: list[tuple[Any, Any]]
