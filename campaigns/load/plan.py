"""What a load test sends, and what one process of writers says afterwards. Travels as JSON between the processes."""

from __future__ import annotations

import random

import msgspec


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One process of writers."""

    urls: list[str]
    """Of the servers; the writers take turns."""
    token: str
    first: int
    """Number of its first run."""
    count: int
    """Of its runs, one writer each."""
    layers: int
    statistics: int
    rate: float
    """Steps a second of each run."""
    steps: int
    """Of each run."""
    start_at: float
    """Unix time of the first step; the writers connect before."""

    def due(self, number: int, step: int) -> float:
        """Unix time at which a run logs a step; runs do not step in time with each other."""
        return self.start_at + (random.Random(number).random() + step) / self.rate


class Report(msgspec.Struct, frozen=True, kw_only=True):
    commit: list[float]
    """Seconds from the logging of a step to the acknowledgement that it is durable, of all steps."""
    late: list[float]
    """Seconds after its logging at which each step was first sent: the socket was full, or the generator slow."""
    reconnects: int
    """After an error that the server called retryable, or a lost connection."""
    errors: list[str]
    """Of writers that could not go on."""


def run_id(number: int) -> str:
    return f"load-{number:04d}"
