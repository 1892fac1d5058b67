"""The plan of a process of writers and its report, which are exchanged between the processes as JSON."""

from __future__ import annotations

import random

import msgspec


class WriterPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Runs that one process of writers sends."""

    urls: list[str]
    """URLs of the servers, which the writers use in turn."""
    token: str
    """Token of all writers."""
    first: int
    """Number of the first run of this process."""
    count: int
    """Number of runs of this process, with one writer each."""
    layers: int
    """Number of layers of each run."""
    statistics: int
    """Number of statistics of each layer."""
    rate: float
    """Steps a second of each run."""
    steps: int
    """Number of steps of each run."""
    start_at: float
    """Unix time of the first step; the writers connect before it."""

    def due(self, number: int, step: int) -> float:
        """Return the Unix time at which a run logs a step; runs have different phases."""
        return self.start_at + (random.Random(number).random() + step) / self.rate


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of one process of writers."""

    commit: list[float]
    """Seconds from the logging of each step to its acknowledgement."""
    late: list[float]
    """Seconds from the logging of each step until it was first sent, because of a full socket or a slow generator."""
    reconnects: int
    """Number of reconnections after a retryable error or a lost connection."""
    errors: list[str]
    """Errors of writers that could not continue."""


def run_id(number: int) -> str:
    """Return the id of a run."""
    return f"load-{number:04d}"
