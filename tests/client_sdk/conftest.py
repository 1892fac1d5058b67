"""Fixtures of the SDK's tests: an ingest server, and runs that are finished after each test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client_sdk.config import Settings
from client_sdk.run import Run
from tests.support.ingest_server import IngestServer

MakeRun = Callable[..., Run]


@pytest.fixture
def server() -> Iterator[IngestServer]:
    """Ingest server that listens on a free port of the loopback interface."""
    with IngestServer() as started:
        yield started


@pytest.fixture
def make_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[MakeRun]:
    """Factory of runs whose spools are under ``tmp_path``/spool. Warnings of the SDK are in ``caplog``."""
    caplog.set_level(logging.WARNING, "client_sdk")
    made: list[Run] = []

    def make(**arguments: Any) -> Run:
        values = {"project": "p", "directory": tmp_path / "spool", "environ": {}, "mode": "offline", **arguments}
        if "url" in arguments:
            values["mode"] = "online"
        run = Run(Settings.resolve(**values))
        made.append(run)
        return run

    yield make
    for run in made:
        run.finish(0.0)


@pytest.fixture
def nobody() -> str:
    """URL of a port on which no server listens."""
    with IngestServer() as server:
        return server.url
