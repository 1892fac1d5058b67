"""Detectors behind the commits: every alert exists exactly once, whatever happens to the server."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from websockets.sync.client import ClientConnection

from client_sdk.protocol import STATISTICS_THINNED, Record
from server.pipeline import inbox
from server.pipeline.inbox import InboxBudget
from server.storage.measurements.segments import SegmentStore, UnreadSegments
from server.storage.runs import RunStore
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record

STEPS = 400
NAN_AT = 120
JUMP_AT = 250
EXPECTED = {"nonfinite", "lr-jump"}


def training() -> list[Record]:
    """Return the records of a quiet run whose loss is NaN once and whose learning rate jumps."""
    return [
        record(
            step,
            math.nan if step == NAN_AT else 1.0 + 0.01 * math.sin(step),
            lr=0.01 if step < JUMP_AT else 0.1,
            block=[[1.0, 0.1], [2.0, 0.2]],
        )
        for step in range(STEPS)
    ]


def send(server: RunningServer, records: list[Record], batch: int, *, finish: bool = False) -> Writer:
    """Send what the server does not have yet, and return when everything is acknowledged."""
    with server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello()
        for start in range(writer.seq, len(records), batch):
            writer.send(*records[start : start + batch])
        writer.wait_for(len(records))
        if finish:
            writer.finish()
        return writer


def until_settled(server: RunningServer, live: ClientConnection) -> tuple[list[Any], list[Any]]:
    """Wait on the live socket until the run has ended with both alerts closed, and return its alerts and events.

    The state alone is not enough: the detectors of a finished run may still be reading. A message may have been sent
    before the socket was a subscriber, so that the API is asked again after a second without one.
    """
    deadline = time.monotonic() + 60
    with server.api() as api:
        while time.monotonic() < deadline:
            run = api.get("/runs/run").json()
            if run["state"] == "finished" and run["stage"] is not None and run["open_alerts"] == 0:
                alerts, events = api.get("/alerts", params={"run": "run"}).json(), api.get("/runs/run/events").json()
                if {alert["kind"] for alert in alerts} >= EXPECTED:
                    return alerts, events
            with contextlib.suppress(TimeoutError):
                live.recv(timeout=1)
    raise AssertionError("the detectors did not settle")


def facts(alerts: list[Any], events: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return what must not depend on how the run was sent, which excludes times of the server."""
    kept = [{key: alert[key] for key in ("id", "kind", "step", "opened_at", "level", "cause")} for alert in alerts]
    return sorted(kept, key=lambda alert: str(alert["id"])), [(event["kind"], event["step"]) for event in events]


def test_alerts_do_not_depend_on_batches_or_restarts(tmp_path: Path) -> None:
    records = training()
    results = []
    for name, batch, parts in (("whole", 400, 1), ("small", 7, 1), ("restarted", 20, 4)):
        directory = tmp_path / name
        for part in range(1, parts + 1):
            end = STEPS * part // parts
            with running_server(directory) as server, server.connect("/live") as live:
                send(server, records[:end], batch, finish=part == parts)
                if part == parts:
                    results.append(facts(*until_settled(server, live)))
    assert results[0] == results[1] == results[2]


def test_detectors_replay_what_was_committed_and_never_read(tmp_path: Path) -> None:
    records = training()
    with running_server(tmp_path) as server, server.connect("/live") as live:
        send(server, records, 50, finish=True)
        before = facts(*until_settled(server, live))
    # Simulate a crash between the acknowledgement and the detectors: segments exist, their conclusions do not.
    with sqlite3.connect(tmp_path / "data" / "spikewatch.sqlite3") as database:
        for table in ("alerts", "events", "monitors"):
            database.execute(f"DELETE FROM {table}")
        database.execute("UPDATE runs SET stage = NULL")
    database.close()
    with running_server(tmp_path) as server, server.connect("/live") as live:
        assert facts(*until_settled(server, live)) == before


def test_detectors_read_from_memory_what_this_server_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conclusions equal those from the database, which an inbox without room forces the detectors to read."""
    looks: list[int] = []
    unread = SegmentStore.unread

    async def counted(store: SegmentStore, run_id: str, rank: int | None, position: int, limit: int) -> UnreadSegments:
        looks.append(position)
        return await unread(store, run_id, rank, position, limit)

    monkeypatch.setattr(SegmentStore, "unread", counted)
    records, results, looked = training(), [], []
    for name, room in (("memory", inbox.INBOX_BYTES), ("database", 0)):
        monkeypatch.setattr(InboxBudget, "__init__", lambda self, size=room: setattr(self, "free", size))
        looks.clear()
        with running_server(tmp_path / name) as server, server.connect("/live") as live:
            with server.connect("/ingest") as socket:
                writer = Writer(socket)
                writer.hello()
                for start in range(0, STEPS, 5):
                    writer.commit(*records[start : start + 5])
                writer.finish()
            results.append(facts(*until_settled(server, live)))
        looked.append(len(looks))
    assert results[0] == results[1]
    assert looked[0] <= 10, "queries at the beginning and at the end"
    assert looked[1] > 5 * looked[0]


def test_alerts_reach_the_training_process(server: RunningServer) -> None:
    with server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello()
        writer.send(*training())
        writer.wait_for(STEPS)
        while not any(notice.alert.kind == "lr-jump" for notice in writer.alerts):
            message = writer.receive()
            if msgspec.structs.asdict(message).get("alert") is not None:
                writer.alerts.append(message)  # type: ignore[arg-type]
    assert {notice.alert.run_id for notice in writer.alerts} == {"run"}


def test_an_acknowledgement_outlives_restarts_and_detectors(tmp_path: Path) -> None:
    records = training()
    with running_server(tmp_path) as server, server.connect("/live") as live, server.api() as api:
        send(server, records[: NAN_AT + 1], 20)
        while not (found := api.get("/alerts", params={"run": "run", "kind": "nonfinite"}).json()):
            live.recv(timeout=20)
        alert = api.post(f"/alerts/{found[0]['id']}/acknowledge").json()
        assert alert["state"] == "acknowledged"
        silenced = api.post(f"/alerts/{alert['id']}/silence", json={"minutes": 5}).json()
        assert silenced["silenced_until"] > silenced["acknowledged_at"]
    with running_server(tmp_path) as server, server.connect("/live") as live, server.api() as api:
        (kept,) = api.get("/alerts", params={"state": "acknowledged"}).json()
        assert (kept["id"], kept["silenced_until"]) == (alert["id"], silenced["silenced_until"])
        send(server, records, 20, finish=True)
        alerts, _ = until_settled(server, live)
        (closed,) = [item for item in alerts if item["id"] == alert["id"]]
        assert (closed["state"], closed["acknowledged_at"]) == ("resolved", alert["acknowledged_at"])


def test_the_summary_follows_the_run(server: RunningServer) -> None:
    with server.connect("/live") as live:
        send(server, training(), 40, finish=True)
        until_settled(server, live)
    with server.api() as api:
        run = api.get("/runs/run").json()
    assert (run["last_step"], run["lr"], run["attempt"], run["rank_count"]) == (STEPS - 1, 0.1, 0, 1)
    assert run["loss"] == 1.0 + 0.01 * math.sin(STEPS - 1)
    assert run["attempts"][0]["last_step"] == STEPS - 1
    assert run["optimizer"]["family"] == "adam"
    assert len(run["sparkline"]) <= 64
    assert None in run["sparkline"]


def test_a_rollback_is_an_event_and_a_new_attempt(server: RunningServer) -> None:
    records = [record(step) for step in range(20)] + [record(step, 2.0) for step in range(10, 30)]
    with server.connect("/live") as live:
        send(server, records, 8, finish=True)
        with server.api() as api:
            while api.get("/runs/run").json()["sparkline"] == []:
                live.recv(timeout=20)
            events = api.get("/runs/run/events").json()
            run = api.get("/runs/run").json()
            series = api.get("/runs/run/series", params={"keys": "loss"}).json()["series"]["loss"]
            first = api.get("/runs/run/series", params={"keys": "loss", "attempt": 0}).json()["series"]["loss"]
    assert {"kind": "rollback", "step": 10, "attempt": 1, "from_step": 19} in events
    assert run["attempt"] == 1
    assert series["last"] == [1.0] * 10 + [2.0] * 20
    assert first["last"] == [1.0] * 20


def test_heartbeats_go_on_after_one_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()
    mark_stale = RunStore.mark_stale

    async def fail_once(store: RunStore, before: float) -> list[str]:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("unexpected")
        return await mark_stale(store, before)

    monkeypatch.setattr(RunStore, "mark_stale", fail_once)
    with running_server(tmp_path, heartbeat_every=0.02, stale_after=0.1) as server, server.connect("/live") as live:
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello()
            writer.commit(record(0))
            assert failed.wait(20)
        with server.api() as api:
            while api.get("/runs/run").json()["state"] != "stale":
                live.recv(timeout=20)
            with server.connect("/ingest") as socket:
                Writer(socket).hello()
                assert api.get("/runs/run").json()["state"] == "running"


def test_a_stretch_of_thinned_statistics_is_among_the_events(tmp_path: Path) -> None:
    """The stretch spans a restart of the server."""
    records = [record(step) for step in range(100)]
    for step in range(51, 80, 2):
        records[step] = Record(step=step, time=float(step), scalars={"loss": 1.0, STATISTICS_THINNED: 1.0})
    for upto in (60, 100):
        with running_server(tmp_path) as server, server.connect("/live") as live:
            send(server, records[:upto], 7, finish=upto == 100)
            with server.api() as api:
                while not (events := thinning(api)) or (upto == 100 and len(events) < 2):
                    live.recv(timeout=20)
    assert [(event["kind"], event["step"]) for event in events] == [
        ("statistics-thinned", 51),
        ("statistics-complete", 79),
    ]
    assert events[1]["from_step"] == 51
    assert events[1]["to_step"] == 79
    assert events[1]["records"] == 15


def thinning(api: httpx.Client) -> list[Any]:
    return [event for event in api.get("/runs/run/events").json() if event["kind"].startswith("statistics-")]
