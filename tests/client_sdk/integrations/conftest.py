"""A real server for the integrations' trainings, and a tiny language model with data in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import client_sdk
from client_sdk.read import Run, Server
from tests.support.server import RunningServer, running_server

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that looks for a file on the network fails at once
torch.set_num_threads(1)

Read = Callable[[], Run]


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(autouse=True)
def _environment(server: RunningServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let trainings find the server, and finish what a failed test left open."""
    monkeypatch.setenv("SPIKEWATCH_URL", server.url)
    monkeypatch.setenv("SPIKEWATCH_TOKEN", server.token)
    monkeypatch.setenv("SPIKEWATCH_DIR", str(tmp_path / "spool"))
    monkeypatch.chdir(tmp_path)
    yield
    client_sdk.finish(0.0)


@pytest.fixture
def project(request: pytest.FixtureRequest) -> str:
    """Name of a project for the test alone."""
    return f"{request.module.__name__} {request.node.name}"


@pytest.fixture
def stored(server: RunningServer, project: str) -> Read:
    """Return the only run of the test's project."""

    def read() -> Run:
        found = Server(server.url, server.token)
        (run,) = found.runs(project=project)
        return found.run(run.id)

    return read
