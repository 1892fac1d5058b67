"""Changing name, tags, notes and archive of a run over HTTP, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest

from client_sdk.protocol import Error
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("details")) as started:
        yield started


@pytest.fixture
def api(server: RunningServer) -> Iterator[httpx.Client]:
    with server.api() as client:
        yield client


def begin(server: RunningServer, run_id: str, **fields: Any) -> None:
    with server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello(run_id, f"writer of {run_id}", **fields)
        writer.commit(record(0), record(1))


def frame_of(live: Any, accept: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the first frame of a live socket that is accepted."""
    while True:
        frame: dict[str, Any] = msgspec.json.decode(live.recv(timeout=20))
        if accept(frame):
            return frame


def test_name_tags_and_notes_are_stored_and_a_restart_of_the_training_keeps_them(
    server: RunningServer, api: httpx.Client
) -> None:
    begin(server, "noted", name="net", tags=("a",), environment={"host": "node-7", "packages": {"torch": "2.13.0"}})
    before = api.get("/runs/noted").json()
    assert (before["notes"], before["archived"]) == ("", False)
    assert before["environment"] == {"host": "node-7", "packages": {"torch": "2.13.0"}}
    body = {"name": " wide net ", "tags": ["b", "a ", "b"], "notes": "Twice as wide.\nDid not help."}
    changed = api.patch("/runs/noted", json=body).json()
    assert (changed["name"], changed["tags"], changed["notes"]) == ("wide net", ["b", "a"], body["notes"])
    stored = api.get("/runs/noted").json()
    assert all(stored[key] == changed[key] for key in ("name", "tags", "notes", "environment", "archived"))
    api.patch("/runs/noted", json={"tags": []})
    begin(server, "noted", name="net", tags=("a",))
    again = api.get("/runs/noted").json()
    assert (again["name"], again["tags"], again["notes"]) == ("wide net", [], body["notes"])
    assert again["environment"]["host"] == "node-7", "a client that says nothing of its machine changes nothing"
    assert api.patch("/runs/noted", json={}).json()["notes"] == body["notes"]
    assert api.patch("/runs/noted", json={"notes": ""}).json()["notes"] == ""


def test_an_archived_run_is_left_out_on_request_and_comes_back(server: RunningServer, api: httpx.Client) -> None:
    begin(server, "old", project="attic")
    begin(server, "new", project="attic")

    def listed(**query: Any) -> set[str]:
        return {run["id"] for run in api.get("/runs", params={"project": "attic", **query}).json()["runs"]}

    with server.connect("/live?runs=old") as live:
        assert api.patch("/runs/old", json={"archived": True}).json()["archived"] is True
        assert frame_of(live, lambda frame: frame["type"] == "run" and frame["run"]["archived"])["run"]["id"] == "old"
    assert listed() == {"old", "new"}
    assert listed(archived=True) == {"old"}
    assert listed(archived=False) == {"new"}
    assert api.patch("/runs/old", json={"notes": "kept"}).json()["archived"] is True
    assert api.patch("/runs/old", json={"archived": False}).json()["archived"] is False
    assert listed(archived=True) == set()


def test_viewers_are_told_that_a_run_is_deleted(server: RunningServer, api: httpx.Client) -> None:
    begin(server, "gone")
    with server.connect("/live") as live:
        frame_of(live, lambda frame: frame["type"] == "subscribed")
        assert api.delete("/runs/gone").status_code == 202
        assert frame_of(live, lambda frame: frame["type"] == "deleted")["run_id"] == "gone"
    assert api.patch("/runs/gone", json={"notes": "x"}).status_code in (404, 410)


def test_a_rule_that_selects_by_tag_follows_the_tags(server: RunningServer, api: httpx.Client) -> None:
    rule = {
        "name": "high",
        "condition": "above",
        "scalar": "loss",
        "value": 0.5,
        "tag": "watched",
        "cooldown_minutes": 0,
    }
    assert api.put("/rules/high", json={"id": "high", **rule}).status_code == 200
    with server.connect("/ingest") as socket, server.connect("/live?runs=tagged") as live:
        writer = Writer(socket)
        writer.hello("tagged", "writer of tagged")
        writer.commit(*(record(step, 1.0) for step in range(5)))
        frame_of(live, lambda frame: frame["type"] == "run" and frame["run"]["last_step"] == 4)
        assert api.get("/alerts", params={"run": "tagged"}).json() == []
        api.patch("/runs/tagged", json={"tags": ["watched"]})
        writer.commit(*(record(step, 1.0) for step in range(5, 10)))
        assert frame_of(live, lambda frame: frame["type"] == "alert")["alert"]["kind"] == "custom-rule"
        api.patch("/runs/tagged", json={"tags": []})
        writer.commit(record(10, 1.0))
        closed = frame_of(live, lambda frame: frame["type"] == "alert" and frame["alert"]["state"] == "resolved")
        assert "no longer applies" in closed["alert"]["message"]
    assert api.delete("/rules/high").status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "  "}, "name"),
        ({"name": "x" * 257}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"tags": [""]}, "tags"),
        ({"tags": ["a\0"]}, "tags"),
        ({"tags": ["t"] * 65}, "tags"),
        ({"notes": "x" * 20_001}, "notes"),
        ({"archived": "perhaps"}, "archived"),
        ({"state": "finished"}, "state"),
    ],
)
def test_what_no_run_can_have_is_refused_with_its_field(
    server: RunningServer, api: httpx.Client, body: dict[str, Any], field: str
) -> None:
    begin(server, "strict", name="strict")
    refused = api.patch("/runs/strict", json=body)
    assert refused.status_code == 400
    assert refused.json()["field"].startswith(field)
    assert api.get("/runs/strict").json()["name"] == "strict"


def test_readers_and_other_projects_change_nothing(server: RunningServer, api: httpx.Client) -> None:
    begin(server, "guarded", name="guarded")
    reader = api.post("/tokens", json={"scope": "read"}).json()["token"]
    other = api.post("/tokens", json={"scope": "write", "project": "other"}).json()["token"]
    for token, status in ((reader, 403), (other, 404)):
        with server.api(token) as theirs:
            assert theirs.patch("/runs/guarded", json={"name": "mine"}).status_code == status
    assert api.patch("/runs/nothing", json={"name": "x"}).json()["error"] == "unknown_run"


def test_an_environment_that_is_too_large_is_refused(server: RunningServer) -> None:
    with server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.send_hello("refused", "w", environment={"a": "x" * 70_000})
        assert writer.expect(Error).code == "too_large"
