"""Rules over HTTP: what is refused, who sees them, what they would have told, and what they tell."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from websockets.sync.client import ClientConnection

from server.auth.tokens import digest_of, new_token
from server.models import Scope
from server.storage.database import Database
from server.storage.tokens import TokenStore
from tests.support.postgres import Postgres
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record

LOSS_IS_HIGH = {"id": "high", "name": "Loss is high", "condition": "above", "value": 2.0, "scalar": "loss"}
NO_DATA = {"id": "silent", "name": "Silent", "condition": "no-data", "value": 0.02, "cooldown_minutes": 0}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """With a run of 120 steps, whose loss is above 2 three times."""
    with running_server(tmp_path_factory.mktemp("rules")) as server:
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello("past", name="gpt-past", tags=("prod",))
            writer.commit(*(training_step(step) for step in range(120)))
            writer.finish()
        yield server


def training_step(step: int) -> Any:
    loss = 3.0 if step % 40 == 39 else math.nan if step == 60 else 1.0
    return record(step, loss, time=1_000.0 + 60 * step, block=[[loss, 1.0], [0.5, 2.0]])


@pytest.fixture
def api(shared: RunningServer) -> Iterator[httpx.Client]:
    with shared.api() as client:
        yield client
        client.put("/rules", json={"rules": []})


def until_alert(live: ClientConnection, state: str) -> dict[str, Any]:
    """The next alert of a rule in this state that the live socket tells of."""
    while True:
        message = msgspec.json.decode(live.recv(timeout=20))
        if message["type"] == "alert" and message["alert"]["kind"] == "custom-rule":
            assert message["alert"]["state"] == state, message["alert"]
            found: dict[str, Any] = message["alert"]
            return found


def test_a_fresh_server_has_sensible_rules(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, server.api() as api:
        (rule,) = api.get("/rules").json()["rules"]
    assert (rule["condition"], rule["value"], rule["enabled"]) == ("no-data", 10.0, True)


def test_rules_are_replaced_changed_and_deleted(api: httpx.Client) -> None:
    other = LOSS_IS_HIGH | {"id": "other", "level": "critical"}
    assert api.put("/rules", json={"rules": [LOSS_IS_HIGH, other]}).status_code == 200
    assert api.put("/rules/high", json=LOSS_IS_HIGH | {"value": 5}).json()["value"] == 5.0
    assert [(rule["id"], rule["value"]) for rule in api.get("/rules").json()["rules"]] == [("high", 5), ("other", 2)]
    assert api.delete("/rules/other").json()["level"] == "critical"
    assert api.delete("/rules/other").status_code == 404
    assert [rule["id"] for rule in api.get("/rules").json()["rules"]] == ["high"]


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (LOSS_IS_HIGH | {"value": "much"}, "rules.0.value"),
        (LOSS_IS_HIGH | {"condition": "near"}, "rules.0.condition"),
        (LOSS_IS_HIGH | {"scalar": None}, "rules.0.scalar"),
        (LOSS_IS_HIGH | {"condition": "z-score", "value": 6, "window": 2}, "rules.0.window"),
        (LOSS_IS_HIGH | {"treshold": 3}, "rules.0.treshold"),
    ],
)
def test_a_wrong_rule_is_refused_by_its_field_and_changes_nothing(
    api: httpx.Client, rule: dict[str, Any], field: str
) -> None:
    before = api.get("/rules").json()
    answer = api.put("/rules", json={"rules": [rule]})
    assert answer.status_code == 400
    assert field in answer.json()["message"]
    assert api.get("/rules").json() == before


def test_rules_are_for_admins_and_a_project_sees_its_own(shared: RunningServer, api: httpx.Client) -> None:
    theirs = LOSS_IS_HIGH | {"id": "theirs", "project": "theirs"}
    mine = LOSS_IS_HIGH | {"id": "mine", "project": "mine"}
    api.put("/rules", json={"rules": [theirs, mine, LOSS_IS_HIGH]})
    with shared.api(asyncio.run(_token(shared, "mine"))) as limited:
        assert [rule["id"] for rule in limited.get("/rules").json()["rules"]] == ["mine", "high"]
        for refused in (
            limited.put("/rules", json={"rules": []}),
            limited.delete("/rules/mine"),
            limited.post("/rules/test", json={"rule": mine, "run": "past"}),
        ):
            assert refused.status_code == 403


async def _token(server: RunningServer, project: str) -> str:
    """Return a token of the scope admin for one project."""
    database, token = Database(server.database_url), new_token()
    await TokenStore(database).create(digest_of(token), Scope.ADMIN, project, "", 0.0)
    await database.close()
    return token


def test_a_rule_is_tried_on_history_before_it_is_saved(api: httpx.Client) -> None:
    answer = api.post("/rules/test", json={"rule": LOSS_IS_HIGH, "run": "past"}).json()
    assert answer["fired"] == 3
    (run,) = answer["runs"]
    assert [(firing["step"], firing["value"]) for firing in run["firings"]] == [(39, 3.0), (79, 3.0), (119, 3.0)]
    assert (run["firings"][0]["until_step"], run["firings"][2]["until_step"]) == (59, None)
    assert (run["records"], run["values"], run["complete"], run["chosen"]) == (120, 119, True, True)
    assert (run["series"]["bucket_steps"], max(run["series"]["max"]), len(run["series"]["step"])) == (1, 3.0, 119)


@pytest.mark.parametrize(
    ("rule", "fired"),
    [
        ({"scalar": None, "statistic": "grad_norm", "layers": "fi*"}, 3),
        ({"scalar": None, "statistic": "grad_norm", "reduce": "min"}, 0),
        ({"condition": "change", "value": 2, "window": 5}, 3),
        ({"condition": "z-score", "value": 6, "window": 20}, 3),
        ({"cooldown_minutes": 60}, 2),
        ({"condition": "no-data", "scalar": None, "value": 0.5}, 1),
        ({"condition": "no-data", "scalar": "never", "value": 0.5}, 0),
    ],
)
def test_every_condition_can_be_tried(api: httpx.Client, rule: dict[str, Any], fired: int) -> None:
    assert api.post("/rules/test", json={"rule": LOSS_IS_HIGH | rule, "run": "past"}).json()["fired"] == fired


def test_a_rule_is_tried_on_the_runs_of_a_project_that_it_is_for(api: httpx.Client) -> None:
    for pattern, runs in (("gpt-*", ["past"]), ("vit-*", [])):
        body = {"rule": LOSS_IS_HIGH | {"run_name": pattern}, "project": "project"}
        assert [run["run_id"] for run in api.post("/rules/test", json=body).json()["runs"]] == runs
    run = api.post("/rules/test", json={"rule": LOSS_IS_HIGH | {"tag": "x"}, "run": "past"}).json()["runs"][0]
    assert run["chosen"] is False
    for wrong in ({}, {"run": "past", "project": "project"}):
        assert api.post("/rules/test", json={"rule": LOSS_IS_HIGH, **wrong}).status_code == 400
    assert api.post("/rules/test", json={"rule": LOSS_IS_HIGH, "run": "none"}).status_code == 404


def test_a_test_says_what_the_cooldown_swallowed(api: httpx.Client) -> None:
    def tried(minutes: float) -> tuple[list[int], list[int]]:
        rule = LOSS_IS_HIGH | {"cooldown_minutes": minutes}
        (run,) = api.post("/rules/test", json={"rule": rule, "run": "past"}).json()["runs"]
        assert run["fired"] == len(run["firings"])
        return [firing["step"] for firing in run["firings"]], [firing["step"] for firing in run["swallowed"]]

    assert tried(0) == ([39, 79, 119], [])
    assert tried(30) == ([39, 79, 119], [])
    assert tried(60) == ([39, 119], [79])
    assert tried(600) == ([39], [79, 119])


def test_a_test_ends_when_its_time_is_up_and_says_so(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.rules.BACKTEST_SECONDS", 0.0)
    (run,) = api.post("/rules/test", json={"rule": LOSS_IS_HIGH, "run": "past"}).json()["runs"]
    assert (run["complete"], run["records"], run["fired"]) == (False, 0, 0)


def test_a_rule_tells_live_what_it_told_of_history(shared: RunningServer, api: httpx.Client) -> None:
    api.put("/rules", json={"rules": [LOSS_IS_HIGH]})
    with shared.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello("present")
        for start in range(0, 120, 7):
            writer.commit(*(training_step(step) for step in range(start, min(start + 7, 120))))
        writer.finish()
    tried = api.post("/rules/test", json={"rule": LOSS_IS_HIGH, "run": "present"}).json()["runs"][0]

    def told() -> list[Any]:
        return [alert for alert in api.get("/alerts?run=present").json() if alert["kind"] == "custom-rule"]

    with shared.connect("/live") as live:
        while len(told()) < len(tried["firings"]) or api.get("/runs/present").json()["open_alerts"]:
            live.recv(timeout=20)
    alerts = told()
    assert sorted(alert["step"] for alert in alerts) == [firing["step"] for firing in tried["firings"]] == [39, 79, 119]
    assert {alert["title"] for alert in alerts} == {firing["title"] for firing in tried["firings"]}


def test_deleting_a_rule_resolves_its_alerts_though_nothing_comes(shared: RunningServer, api: httpx.Client) -> None:
    api.put("/rules", json={"rules": [LOSS_IS_HIGH]})
    with shared.connect("/live?runs=waiting") as live, shared.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello("waiting")
        writer.commit(record(0, 3.0))
        opened = until_alert(live, "open")
        api.delete("/rules/high")
        closed = until_alert(live, "resolved")
    assert opened["id"] == closed["id"]
    assert "deleted" in closed["message"]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_silence_is_told_once_by_two_servers_and_ends_with_data(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    url = None
    if kind == "postgres":
        started: Postgres = request.getfixturevalue("postgres")
        url = started.create_database(is_current=True)
    quick: dict[str, Any] = {"heartbeat_every": 0.2, "database_url": url}
    with (
        running_server(tmp_path, **quick) as one,
        running_server(tmp_path, **quick) as two,
        one.connect("/live") as live,
        two.connect("/live") as elsewhere,
        one.connect("/ingest") as socket,
        one.api() as api,
    ):
        api.put("/rules", json={"rules": [NO_DATA]})
        writer = Writer(socket)
        writer.hello("run")
        writer.commit(*(record(step, time=time.time()) for step in range(30)))
        told = _next_alert(live, elsewhere)
        assert (told["state"], told["step"], told["level"]) == ("open", 29, "warning")
        assert told["title"] == "Silent since step 29"
        writer.commit(record(30, time=time.time()))
        back = _next_alert(live, elsewhere)
        assert (back["id"], back["state"]) == (told["id"], "resolved")
        assert "came again" in back["message"]
        assert [alert["id"] for alert in api.get("/alerts?run=run").json()] == [told["id"]]


def _next_alert(*sockets: ClientConnection) -> dict[str, Any]:
    """Return the next alert that any of the sockets receives."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for socket in sockets:
            try:
                message = msgspec.json.decode(socket.recv(timeout=0.05))
            except TimeoutError:
                continue
            if message["type"] == "alert":
                found: dict[str, Any] = message["alert"]
                return found
    raise AssertionError("no alert came")


def test_rules_survive_a_restart_with_what_they_remember(tmp_path: Path) -> None:
    rule = LOSS_IS_HIGH | {"condition": "change", "value": 2.0, "window": 50}
    ids = set()
    for part in range(2):
        with running_server(tmp_path) as server, server.api() as api, server.connect("/live") as live:
            api.put("/rules", json={"rules": [rule]})
            with server.connect("/ingest") as socket:
                writer = Writer(socket)
                writer.hello("run")
                writer.commit(*(record(step, 1.0 + step // 60) for step in range(50 * part, 50 * part + 50)))
                if part:
                    ids.add(until_alert(live, "open")["step"])
    assert ids == {60}
