"""Slows a small training down to a rate that a person can watch."""

from __future__ import annotations

import time


class Pace:
    """At most ``steps_per_second`` steps a second; a training that is slower anyway is not delayed."""

    def __init__(self, steps_per_second: float) -> None:
        self._interval = 1.0 / steps_per_second  # seconds
        self._next = time.monotonic()

    def wait(self) -> None:
        """Return when the next step is due. Time that was lost is not caught up."""
        now = time.monotonic()
        if now < self._next:
            time.sleep(self._next - now)
        self._next = max(self._next, now) + self._interval
