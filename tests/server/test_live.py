"""The live socket pushes news to the viewers that may see them."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from server.auth.tokens import digest_of
from server.models import Scope
from server.storage.database import Database
from server.storage.tokens import TokenStore
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record


def receive(socket: ClientConnection, kind: str | None = None) -> dict[str, Any]:
    """The next message, or the next of a kind."""
    while True:
        message: dict[str, Any] = json.loads(socket.recv(timeout=20))
        if kind is None or message["type"] == kind:
            return message


def test_a_commit_is_pushed_with_its_range_and_the_summary_follows(server: RunningServer) -> None:
    with server.connect("/live") as live, server.connect("/ingest") as socket:
        subscribed = receive(live)
        assert (subscribed["type"], subscribed["runs"], subscribed["resumed"]) == ("subscribed", None, False)
        writer = Writer(socket)
        writer.hello()
        assert receive(live, "run")["run"]["id"] == "run"
        writer.commit(record(3), record(4))
        advance = receive(live, "advance")
        assert {key: advance[key] for key in ("run_id", "attempt", "step_from", "step_to")} == {
            "run_id": "run",
            "attempt": 0,
            "step_from": 3,
            "step_to": 4,
        }
        assert abs(advance["committed_at"] - time.time()) < 60
        while (summary := receive(live, "run")["run"])["last_step"] is None:
            pass
        with server.api() as api:
            listed = api.get("/runs").json()["runs"][0]
        assert summary.keys() == listed.keys()


def test_only_the_runs_that_were_asked_for(server: RunningServer) -> None:
    with server.connect("/live?runs=b,c") as live:
        assert receive(live)["runs"] == ["b", "c"]
        for run_id in ("a", "b"):
            with server.connect("/ingest") as socket:
                writer = Writer(socket)
                writer.hello(run_id, f"writer-{run_id}")
                writer.commit(record(0))
        assert receive(live, "advance")["run_id"] == "b"


def test_alerts_and_events_are_pushed(server: RunningServer) -> None:
    with server.connect("/live") as live, server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello()
        writer.send(*(record(step, float("nan") if step == 30 else 1.0) for step in range(40)))
        alert = receive(live, "alert")["alert"]
        assert (alert["kind"], alert["step"], alert["run_id"], alert["state"]) == ("nonfinite", 30, "run", "open")
        with server.api() as api:
            api.post(f"/alerts/{alert['id']}/acknowledge")
        assert receive(live, "alert")["alert"]["state"] == "acknowledged"
        writer.commit(record(10))
        while (event := receive(live, "event")["event"])["kind"] != "rollback":
            pass
        assert (event["step"], event["attempt"], event["from_step"]) == (10, 1, 39)


@pytest.mark.parametrize("token", ["", "sw_unknown"])
def test_without_a_token_the_socket_says_why_and_closes(server: RunningServer, token: str) -> None:
    with server.connect("/live", token=token) as live:
        error = receive(live)
        assert (error["type"], error["code"], error["retryable"]) == ("error", "unauthenticated", False)
        with pytest.raises(ConnectionClosed):
            live.recv(timeout=20)
        assert live.close_code == 4401


def test_a_token_of_one_project_hears_of_no_other(server: RunningServer) -> None:
    token = "sw_only_the_project_mine"

    async def make() -> None:
        database = Database(server.database_url)
        await TokenStore(database).create(digest_of(token), Scope.READ, "mine", "", 0.0)
        await database.close()

    asyncio.run(make())
    with server.connect("/live?runs=theirs,ours", token=token) as live:
        receive(live, "subscribed")
        for run_id, project in (("theirs", "other"), ("ours", "mine")):
            with server.connect("/ingest") as socket:
                writer = Writer(socket)
                writer.hello(run_id, run_id, project=project)
                writer.commit(record(0))
        assert receive(live, "advance")["run_id"] == "ours"


def test_a_closing_server_says_goodbye_to_viewers(server: RunningServer) -> None:
    with server.connect("/live") as live:
        receive(live, "subscribed")
        server.service.stop()
        with pytest.raises(ConnectionClosed):
            receive(live, "never")
        assert live.close_code == 1012


def test_a_run_that_falls_silent_is_stale_until_it_returns(tmp_path: Path) -> None:
    with running_server(tmp_path, stale_after=0.1, heartbeat_every=0.05) as server, server.connect("/live") as live:
        with server.connect("/ingest") as socket:
            Writer(socket).hello()
            assert receive(live, "run")["run"]["state"] == "running"
        while receive(live, "run")["run"]["state"] != "stale":
            pass
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello()
            while receive(live, "run")["run"]["state"] != "running":
                pass
            writer.finish()
            while receive(live, "run")["run"]["state"] != "finished":
                pass
