"""The cost of measuring and the time of a training step, from clocks that never make training wait."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

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
        self._unread: deque[tuple[float, Any, Any]] = deque(maxlen=MAX_UNREAD)
        self._own = 0.0  # seconds of the host that were spent since the last step
        self._costs: list[float] = []
        self._started = 0.0
        self._begin: Any = None
        self._ended_at: float | None = None

    def start(self) -> None:
        """Start measuring a step."""
        self._started = time.perf_counter()
        if self._device is not None:
            self._begin = self._event()

    def stop(self) -> None:
        """Stop measuring the step."""
        seconds = time.perf_counter() - self._started
        self._own += seconds
        if self._device is None:
            self._costs.append(seconds)
        else:
            self._unread.append((seconds, self._begin, self._event()))

    def spent(self, seconds: float) -> None:
        """Take in time of the host that belongs to the last measurement, such as that of building its block."""
        self._own += seconds
        if self._costs:
            self._costs[-1] += seconds
        elif self._unread:
            on_host, begin, end = self._unread.pop()
            self._unread.append((on_host + seconds, begin, end))

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
        while self._unread and self._unread[0][2].query():
            on_host, begin, end = self._unread.popleft()
            self._costs.append(on_host + begin.elapsed_time(end) / 1000)
        known, self._costs = self._costs, []
        return known

    def _event(self) -> Any:
        with torch.cuda.device(self._device):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return event
