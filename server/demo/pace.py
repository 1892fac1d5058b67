"""The pace of a small training, slowed down to a rate that a person can watch."""

from __future__ import annotations

import time


class Pace:
    """A limit of steps per second. A training that is slower anyway is not delayed."""

    def __init__(self, steps_per_second: float) -> None:
        self._interval = 1.0 / steps_per_second  # seconds
        self._next = time.monotonic()

    def wait(self) -> None:
        """Wait until the next step is due. Lost time is not made up for."""
        now = time.monotonic()
        if now < self._next:
            time.sleep(self._next - now)
        self._next = max(self._next, now) + self._interval
