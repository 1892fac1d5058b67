"""Fixtures of the tests that send alerts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from server.storage.database import Database
from tests.support.alerting import Detectors
from tests.support.dispatching import WatchedOutbox
from tests.support.slack import SlackServer


@pytest.fixture
def slack() -> Iterator[SlackServer]:
    with SlackServer() as server:
        yield server
        assert server.problems == []


@pytest.fixture
def detectors(database: Database) -> Detectors:
    WatchedOutbox.changed = asyncio.Condition()
    return Detectors(database)
