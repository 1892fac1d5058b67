"""The chosen loss of a run and of a project, over the API of real servers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client_sdk.protocol import Record
from tests.support.postgres import Postgres
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("losses")) as started:
        yield started


def records(first: int, count: int, **scalars: float) -> list[Record]:
    return [Record(step=step, time=1_000_000.0 + step, scalars=dict(scalars)) for step in range(first, first + count)]


def begin(server: RunningServer, run_id: str, *batches: list[Record], finish: bool = True, **fields: Any) -> None:
    with server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello(run_id, writer=run_id, **fields)
        for batch in batches:
            writer.commit(*batch)
        if finish:
            writer.finish()


def wait_for(server: RunningServer, run_id: str, accept: Callable[[Any], bool]) -> Any:
    with server.connect(f"/live?run={run_id}") as live, server.api() as api:
        while not accept(run := api.get(f"/runs/{run_id}").json()):
            live.recv(timeout=20)
        return run


def choose(server: RunningServer, path: str, scalar: str | None, *, status: int = 200) -> Any:
    with server.api() as api:
        answer = api.put(f"{path}/loss", json={"scalar": scalar})
    assert answer.status_code == status, answer.text
    return answer.json()


def test_the_loss_of_a_run_that_goes_on_is_judged_anew_from_its_next_record(server: RunningServer) -> None:
    with server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello("going", writer="going")
        writer.commit(*records(0, 40, **{"train/loss": 2.0, "val/loss": 9.0}))
        before = wait_for(server, "going", lambda run: run["stage_reason"] == "loss-only")
        assert (before["loss_name"], before["loss_since"], before["loss_choice"]) == ("train/loss", None, None)
        chosen = choose(server, "/runs/going", "val/loss")
        assert chosen["loss_choice"] == {"scalar": "val/loss", "by": "run"}
        assert (chosen["loss_name"], chosen["loss"], chosen["loss_since"]) == ("val/loss", 9.0, 40)
        assert set(chosen["sparkline"]) == {9.0}
        writer.commit(*records(40, 5, **{"train/loss": 2.0, "val/loss": 9.0}))
        after = wait_for(server, "going", lambda run: run["stage_reason"] == "too-few-records")
        assert (after["loss_name"], after["loss"], after["loss_since"]) == ("val/loss", 9.0, 40)
        writer.commit(*records(45, 40, **{"train/loss": 2.0, "val/loss": 9.0}))
        writer.finish()
    done = wait_for(server, "going", lambda run: run["state"] == "finished" and run["stage_reason"] == "loss-only")
    assert set(done["sparkline"]) == {9.0}
    with server.api() as api:
        assert api.get("/alerts", params={"run": "going"}).json() == [], "a jump between two scalars is no spike"
        series = api.get("/runs/going/series", params={"keys": "loss"}).json()["series"]["loss"]
    assert set(series["max"]) == {9.0}


def test_alerts_on_the_loss_before_are_closed_with_the_reason(server: RunningServer) -> None:
    with server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello("closing", writer="closing")
        writer.commit(*records(0, 40, loss=2.0, elbo=5.0), *records(40, 10, loss=math.nan, elbo=5.0))
        wait_for(server, "closing", lambda run: run["open_alerts"] == 1)
        choose(server, "/runs/closing", "elbo")
        writer.commit(*records(50, 5, loss=math.nan, elbo=5.0))
        wait_for(server, "closing", lambda run: run["open_alerts"] == 0)
    with server.api() as api:
        (alert,) = api.get("/alerts", params={"run": "closing"}).json()
    assert alert["message"].endswith("The loss is elbo now, and the detectors began anew.")


def test_an_ended_run_shows_the_chosen_loss_and_says_that_it_was_judged_on_another(server: RunningServer) -> None:
    begin(server, "ended", records(0, 40, **{"loss": 2.0, "val/loss": 9.0}))
    wait_for(server, "ended", lambda run: run["state"] == "finished" and run["loss_name"] == "loss")
    chosen = choose(server, "/runs/ended", "val/loss")
    assert (chosen["loss_name"], chosen["loss"], chosen["loss_since"]) == ("val/loss", 9.0, 40)
    back = choose(server, "/runs/ended", None)
    assert (back["loss_name"], back["loss"], back["loss_choice"]) == ("loss", 2.0, None)


def test_a_person_decides_before_the_code(server: RunningServer) -> None:
    values = {"loss": 2.0, "elbo": 5.0, "val/loss": 9.0}
    begin(server, "coded", records(0, 20, **values), loss="elbo")
    coded = wait_for(server, "coded", lambda run: run["loss_name"] == "elbo" and run["state"] == "finished")
    assert coded["loss_choice"] == {"scalar": "elbo", "by": "code"}
    choose(server, "/runs/coded", "val/loss")
    begin(server, "coded", records(20, 20, **values), loss="elbo")
    again = wait_for(server, "coded", lambda run: run["last_step"] == 39 and run["loss_since"] == 20)
    assert (again["loss_name"], again["loss_choice"]["by"]) == ("val/loss", "run")
    assert choose(server, "/runs/coded", None)["loss_name"] == "elbo"


def test_the_default_of_a_project_holds_for_runs_to_come_that_log_it(server: RunningServer) -> None:
    path = "/projects/team/vision"
    assert choose(server, path, "val/loss") == {"project": "team/vision", "scalar": "val/loss"}
    begin(server, "with", records(0, 20, **{"loss": 2.0, "val/loss": 9.0}), project="team/vision")
    begin(server, "without", records(0, 20, loss=2.0), project="team/vision")
    begin(server, "elsewhere", records(0, 20, **{"loss": 2.0, "val/loss": 9.0}))
    found = wait_for(server, "with", lambda run: run["loss_name"] == "val/loss")
    assert found["loss_choice"] == {"scalar": "val/loss", "by": "project"}
    for run_id in ("without", "elsewhere"):
        assert wait_for(server, run_id, lambda run: run["loss_name"] is not None)["loss_choice"] is None
    with server.api() as api:
        assert api.get(f"{path}/loss").json()["scalar"] == "val/loss"
        assert api.put(f"{path}/loss", json={"scalar": None}).json()["scalar"] is None
        assert api.get(f"{path}/loss").json()["scalar"] is None


def test_bad_choices_and_small_tokens_are_refused(server: RunningServer) -> None:
    begin(server, "plain", records(0, 20, loss=2.0))
    assert choose(server, "/runs/plain", "nothing", status=404)["error"] == "unknown_scalar"
    assert choose(server, "/runs/unknown", "loss", status=404)["error"] == "unknown_run"
    with server.api() as api:
        assert api.put("/runs/plain/loss", json={}).status_code == 400
        reader = api.post("/tokens", json={"scope": "read"}).json()["token"]
        other = api.post("/tokens", json={"scope": "write", "project": "other"}).json()["token"]
    with server.api(reader) as api:
        assert api.put("/runs/plain/loss", json={"scalar": None}).status_code == 403
        assert api.put("/projects/project/loss", json={"scalar": None}).status_code == 403
    with server.api(other) as api:
        assert api.put("/runs/plain/loss", json={"scalar": None}).status_code == 404
        assert api.put("/projects/project/loss", json={"scalar": None}).status_code == 403
        assert api.get("/projects/project/loss").status_code == 403


def test_a_backtest_of_a_rule_about_the_loss_reads_the_runs_loss(server: RunningServer) -> None:
    begin(server, "ruled", records(0, 20, **{"train/loss": 2.0}), records(20, 20, **{"train/loss": 50.0}))
    wait_for(server, "ruled", lambda run: run["loss_name"] == "train/loss" and run["last_step"] == 39)
    rule = {"id": "high", "name": "high", "condition": "above", "value": 10.0, "scalar": "loss"}
    with server.api() as api:
        answer = api.post("/rules/test", json={"rule": rule, "run": "ruled"})
    (tested,) = answer.json()["runs"]
    assert (tested["values"], [firing["step"] for firing in tested["firings"]]) == (40, [20])


def test_a_choice_reaches_the_server_that_follows_the_run(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.create_database(is_current=True)
    values = {"train/loss": 2.0, "val/loss": 9.0}
    with (
        running_server(tmp_path / "one", database_url=url, heartbeat_every=0.1) as one,
        running_server(tmp_path / "two", database_url=url, heartbeat_every=0.1) as two,
        one.connect("/ingest") as socket,
    ):
        writer = Writer(socket)
        writer.hello("far", writer="far")
        writer.commit(*records(0, 30, **values))
        wait_for(one, "far", lambda run: run["stage_reason"] == "loss-only")
        choose(two, "/runs/far", "val/loss")
        step = 30
        with one.api() as api:
            while api.get("/runs/far").json()["stage_reason"] != "too-few-records":
                assert step < 3000, "the follower never read the choice"
                writer.commit(*records(step, 1, **values))
                step += 1
        found = wait_for(one, "far", lambda run: run["loss_name"] == "val/loss")
    assert 30 <= found["loss_since"] < step


def test_the_document_describes_the_calls(server: RunningServer) -> None:
    with server.api() as api:
        document = json.loads(api.get("/openapi.json").content)
    assert {"put"} <= document["paths"]["/api/v1/runs/{run_id}/loss"].keys()
    assert {"get", "put"} <= document["paths"]["/api/v1/projects/{project}/loss"].keys()
    assert "LossChoice" in document["components"]["schemas"]
