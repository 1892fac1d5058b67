"""Fixtures: logs that grow, a server in memory, and followers that send the one to the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from client_sdk.protocol import Record
from server.following.address import Address
from server.following.background import BackgroundFollower
from server.following.log_follower import FollowOptions, LogFollower
from server.imports.options import ReadOptions
from tests.support.ingest_server import IngestServer

POLL_EVERY = 0.02  # seconds


@dataclass(kw_only=True)
class Site:
    """A folder of logs, a server, and the followers of a test, one at a time."""

    logs: Path
    home: Path
    server: IngestServer
    notes: list[str] = field(default_factory=list)
    _running: BackgroundFollower | None = None

    def follow(self, *paths: Path, url: str | None = None, token: str | None = None, **options: Any) -> None:
        """Follow paths, by default the folder of the logs. Following again is a restart, with the same positions."""
        self.stop()
        reading = ReadOptions(**options.pop("reading", {}))
        follower = LogFollower(
            paths or (self.logs,),
            Address(url=url or self.server.url, token=token, home=self.home),
            FollowOptions(reading=reading, poll_every=POLL_EVERY, **options),
            directory=self.home / "follow",
            note=self.notes.append,
            server="server",
        )
        self._running = BackgroundFollower(follower, self.notes.append)
        self._running.start()

    def stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    def wait_for_steps(self, steps: list[int]) -> None:
        """Wait until exactly these steps are stored, in this order."""
        self.server.wait_for(lambda: len(self.server.steps()) >= len(steps))
        assert self.server.steps() == steps

    def wait_for(self, predicate: Callable[[], object]) -> None:
        """Wait until the server has received something that makes ``predicate`` true."""
        self.server.wait_for(predicate)

    def runs(self) -> dict[str, list[Record]]:
        """Records of each run, keyed by its name."""
        names = {hello.writer: hello.name or "" for hello in self.server.hellos}
        found: dict[str, list[Record]] = {}
        for writer, records in self.server.records.items():
            found.setdefault(names[writer], []).extend(records)
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    logs, home = tmp_path / "logs", tmp_path / "home"
    logs.mkdir()
    with IngestServer() as server:
        made = Site(logs=logs, home=home, server=server)
        yield made
        made.stop()


def append(path: Path, text: str) -> None:
    """Append to a file and flush it, as a training does."""
    with path.open("a", newline="") as file:
        file.write(text)


def lines(steps: range | list[int], loss: float = 1.0) -> str:
    """JSON lines of steps."""
    return "".join(f'{{"step": {step}, "loss": {loss + step / 1000}}}\n' for step in steps)
