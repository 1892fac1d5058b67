"""Alerts on their way back into training, to connected and to reconnecting writers."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from client_sdk.config import Settings
from client_sdk.protocol import AlertNotice
from client_sdk.run import Run
from tests.support.redis import Redis
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record


def alerts_of(server: RunningServer, run_id: str, count: int) -> list[dict[str, Any]]:
    """Wait until this many alerts of a run have opened, and return them."""
    with server.api() as api, server.connect("/live") as live:
        while len(found := api.get("/alerts", params={"run": run_id}).json()) < count:
            live.recv(timeout=20)
    return list(found)


def test_a_writer_that_was_away_receives_the_alert_at_its_next_hello_to_any_server(tmp_path: Path) -> None:
    with running_server(tmp_path) as one, running_server(tmp_path) as two:
        with one.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello()
            writer.send(*(record(step, math.nan if step == 30 else 1.0) for step in range(40)))
            writer.wait_for(40)
        (alert,) = alerts_of(one, "run", 1)
        with two.connect("/ingest") as socket:
            writer = Writer(socket)
            welcome = writer.hello()
            assert welcome.last_seq == 40
            assert writer.expect(AlertNotice).alert.id == alert["id"]


def test_a_callback_receives_an_alert_once_although_the_server_was_restarted(tmp_path: Path) -> None:
    received: list[tuple[str, str]] = []
    with running_server(tmp_path) as server:
        run = _run(server, tmp_path)
        run.on_alert(lambda alert: received.append((alert.kind, alert.change)))
        for step in range(40):
            run.log({"loss": math.nan if step == 30 else 1.0}, step=step)
        deadline = time.monotonic() + 20
        while not received and time.monotonic() < deadline:
            run.log({"loss": 1.0}, step=40)
            run.flush(20)
        port = server.service.config.port
    assert received == [("nonfinite", "opened")]
    with running_server(tmp_path, port=port) as server:
        for step in range(41, 100):
            run.log({"loss": 1.0}, step=step)
        assert run.flush(20)
        deadline = time.monotonic() + 20
        while len(received) < 2 and time.monotonic() < deadline:
            run.log({"loss": 1.0}, step=100)
            run.flush(20)
        run.finish(20)
    assert received == [("nonfinite", "opened"), ("nonfinite", "resolved")]


def test_a_rank_on_another_server_receives_an_alert_that_opened_elsewhere(tmp_path: Path, redis: Redis) -> None:
    shared = {"redis_url": redis.url}
    received: list[tuple[str, str]] = []
    with (
        running_server(tmp_path, **shared) as one,
        running_server(tmp_path, **shared) as two,
        one.connect("/ingest") as socket,
    ):
        leading = Writer(socket)
        leading.hello("together", rank=0)
        leading.commit(*(record(step) for step in range(20)))
        run = _run(two, tmp_path, run_id="together", rank=1)
        run.on_alert(lambda alert: received.append((alert.kind, alert.change)))
        run.log({"loss": 1.0}, step=0)
        assert run.flush(20)
        leading.commit(*(record(step, math.nan if step == 30 else 1.0) for step in range(20, 40)))
        deadline = time.monotonic() + 20
        while not received and time.monotonic() < deadline:
            run.log({"loss": 1.0})
            run.flush(20)
        run.finish(20)
    assert received == [("nonfinite", "opened")]


def _run(server: RunningServer, directory: Path, *, run_id: str | None = None, rank: int = 0) -> Run:
    return Run(
        Settings.resolve(
            project="project",
            name=None,
            config=None,
            tags=(),
            url=server.url,
            token=server.token,
            mode="online",
            directory=directory / "spool",
            run_id=run_id,
            environ={"RANK": str(rank)},
        )
    )
