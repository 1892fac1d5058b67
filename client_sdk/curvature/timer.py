"""Time for which a measurement kept the device busy, without waiting for the device."""

from __future__ import annotations

import time
from typing import Any

import torch


class Timer:
    """Timer of one measurement, from its construction to `stop`."""

    def __init__(self, device: torch.device) -> None:
        """Start the timer for work on ``device``."""
        self._device = device
        self._events: tuple[Any, Any] | None = None
        if device.type == "cuda":
            with torch.cuda.device(device):
                self._events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                self._events[0].record()
        self._started = time.perf_counter()
        self.on_host = 0.0
        """Seconds for which the host was busy; 0 before `stop`."""

    def stop(self) -> None:
        """Stop the timer."""
        self.on_host = time.perf_counter() - self._started
        if self._events is not None:
            with torch.cuda.device(self._device):
                self._events[1].record()

    def done(self) -> bool:
        """Return whether `seconds` is known. Never synchronises a device."""
        return self._events is None or bool(self._events[1].query())

    def seconds(self) -> float:
        """Return the seconds for which the host or the device was busy, whichever is more."""
        if self._events is None:
            return self.on_host
        return max(self.on_host, float(self._events[0].elapsed_time(self._events[1])) / 1000)


class Allowance:
    """Time that a series of equal pieces of work may take. Used on the training thread."""

    def __init__(self, seconds: float) -> None:
        """Allow ``seconds`` from now on."""
        self._began = self._last = time.perf_counter()
        self._seconds = seconds
        self._longest = 0.0

    def start(self) -> None:
        """Begin with the first piece; what was done until now is not one of them."""
        self._last = time.perf_counter()

    def may_go_on(self) -> bool:
        """Return whether one more piece that takes as long as the longest so far will end in time."""
        now = time.perf_counter()
        self._longest, self._last = max(self._longest, now - self._last), now
        return now - self._began + self._longest <= self._seconds
