"""Agents ask over MCP: the library's own client over streamable HTTP against a real server."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import httpx2
import msgspec
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent

from client_sdk.protocol import Record
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record

TOOLS = {
    "compare_runs", "explain_alert", "layers_around", "list_alerts", "list_runs", "runs_at_risk", "series_around",
    "what_was_tried",
}  # fmt: skip
NAN_STEP = 300


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Three runs of one project, of which one has ended in NaN and one is in NaN now, and a run of another project."""
    with running_server(tmp_path_factory.mktemp("agents"), public_url="https://watch.example") as server:
        for run_id, project, lr, fails in (
            ("calm", "mine", 0.1, False),
            ("failed", "mine", 0.4, True),
            ("failing", "mine", 0.2, True),
            ("hidden", "theirs", 0.1, True),
        ):
            with server.connect("/ingest") as socket:
                writer = Writer(socket)
                config = {"lr": lr, "model": {"depth": 4}}
                writer.hello(run_id, run_id, project=project, name=f"{run_id} run", config=config)
                for begin in range(0, NAN_STEP, 100):
                    writer.commit(*(healthy(step, lr) for step in range(begin, begin + 100)))
                if fails:
                    bad = [[1.0, 1.0], [math.nan, 1.0]]
                    writer.commit(*(record(step, math.nan, block=bad, lr=lr) for step in range(NAN_STEP, NAN_STEP + 5)))
                if run_id in ("calm", "failed"):
                    writer.finish("crashed" if fails else "finished")
        with server.api() as api:
            await_alerts(api, 3)
        yield server


def healthy(step: int, lr: float) -> Record:
    grows = 1.0 if step < NAN_STEP - 1 else 8.0
    made = record(step, 2.0 + 0.01 * (step % 7) + lr, block=[[1.0, 1.0], [2.0 * grows, 1.0]], lr=lr)
    return msgspec.structs.replace(made, scalars={**made.scalars, "a,b": 1.0})


def await_alerts(api: httpx.Client, number: int) -> None:
    """Wait until the detectors have read the runs, which the event of each reports on the live socket as well."""
    while len([alert for alert in api.get("/alerts").json() if alert["kind"] == "nonfinite"]) < number:
        pass


@contextlib.asynccontextmanager
async def agent(running: RunningServer, token: str) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=60) as http,
        Client(streamable_http_client(f"{running.url}/mcp", http_client=http)) as client,
    ):
        yield client


async def ask(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    found = answer.structured_content
    assert isinstance(found, dict)
    assert isinstance(answer.content[0], TextContent)
    assert json.loads(answer.content[0].text) == found, "an agent that reads text reads the same"
    return found


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error
    assert isinstance(answer.content[0], TextContent)
    return answer.content[0].text


def token_of(running: RunningServer, **fields: Any) -> str:
    with running.api() as api:
        return str(api.post("/tokens", json={"scope": "read", **fields}).json()["token"])


async def test_an_agent_finds_only_tools_that_read(running: RunningServer) -> None:
    async with agent(running, token_of(running)) as client:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == TOOLS
        for tool in tools:
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint
            assert tool.description
        assert client.instructions is not None
        assert "runs_at_risk" in client.instructions


async def test_an_agent_finds_the_run_at_risk_and_explains_its_alert(running: RunningServer) -> None:
    async with agent(running, token_of(running, project="mine")) as client:
        found = await ask(client, "runs_at_risk")
        (run,) = found["runs_at_risk"]
        assert (run["run_id"], run["project"], found["unfinished_runs"]) == ("failing", "mine", 1)
        assert run["level"] == "critical"
        assert run["url"] == "https://watch.example/runs/failing"
        explained = [await ask(client, "explain_alert", alert_id=alert_id) for alert_id in run["alert_ids"]]
        (alert,) = [alert for alert in explained if alert["kind"] == "nonfinite"]
        assert (alert["kind"], alert["step"], alert["state"]) == ("nonfinite", NAN_STEP, "open")
        assert {item["key"] for item in alert["evidence"]} >= {"nonfinite_loss", "nonfinite_gradients"}
        assert all(item["meaning"] for item in alert["evidence"])
        assert alert["what_to_do"]
        assert alert["run"]["run_id"] == "failing"
        assert alert["url"] == f"https://watch.example/alerts/{alert['alert_id']}"
        assert "nonfinite" in {event["kind"] for event in alert["events_around"]}
        (growing,) = [alert for alert in explained if alert["kind"] == "gradient-explosion"]
        assert growing["layers"][0]["layer"] == "second"


async def test_an_agent_reads_series_and_layers_around_a_step(running: RunningServer) -> None:
    async with agent(running, token_of(running, project="mine")) as client:
        found = await ask(client, "series_around", run_id="failing", step=NAN_STEP, before=10, after=10)
        loss = found["series"]["loss"]
        assert loss["step"] == list(range(NAN_STEP - 10, NAN_STEP + 5))
        assert loss["value"][:2] == [2.0 + 0.01 * ((NAN_STEP - 10) % 7) + 0.2, 2.0 + 0.01 * ((NAN_STEP - 9) % 7) + 0.2]
        assert loss["not_finite"] == 5
        assert loss["meaning"]
        named = await ask(client, "series_around", run_id="failing", before=5, scalars=["a,b"])
        assert list(named["series"]) == ["a,b"]
        wide = await ask(client, "series_around", run_id="calm", step=150, before=150, after=150)
        assert wide["steps_per_value"] >= 4
        assert len(wide["series"]["loss"]["value"]) <= 60
        layers = await ask(client, "layers_around", run_id="failing", step=NAN_STEP - 1, before=50)
        assert [item["layer"] for item in layers["layers"]] == ["second", "first"]
        assert layers["layers"][0]["times_median"] == 8.0
        assert {"grad_norm", "update_norm"} <= set(layers["statistics"])


async def test_an_agent_compares_runs_and_sees_what_was_tried(running: RunningServer) -> None:
    async with agent(running, token_of(running, project="mine")) as client:
        found = await ask(client, "compare_runs", first_run_id="calm", second_run_id="failed")
        assert found["differences"] == {"lr": [0.1, 0.4]}
        assert [run["run_id"] for run in found["runs"]] == ["calm", "failed"]
        assert found["runs"][1]["alerts"]["critical nonfinite"] == 1
        assert "critical nonfinite" not in found["runs"][0].get("alerts", {})
        last = next(item for item in found["loss_at_steps"] if item["step"] == NAN_STEP - 1)
        assert last["second"] - last["first"] == pytest.approx(0.3)
        tried = await ask(client, "what_was_tried", project="mine")
        assert tried["settings_that_differ"] == ["lr"]
        runs = {run["run_id"]: run for run in tried["runs"]}
        assert {name: run["settings"]["lr"] for name, run in runs.items()} == {
            "calm": 0.1,
            "failed": 0.4,
            "failing": 0.2,
        }
        assert (runs["failed"]["state"], runs["failed"]["ended_with"]) == ("crashed", "NaN")
        assert runs["failed"]["alerts"]["nonfinite"] == 1
        assert "ended_with" not in runs["calm"]
        listed = await ask(client, "list_runs", state="finished")
        assert [run["run_id"] for run in listed["runs"]] == ["calm"]
        alerts = await ask(client, "list_alerts", run_id="failed", level="critical")
        assert [alert["kind"] for alert in alerts["alerts"]] == ["nonfinite"]


async def test_a_token_of_another_project_sees_nothing_of_this_one(running: RunningServer) -> None:
    with running.api() as api:
        alert = api.get("/alerts?run=failing&level=critical").json()[0]
    async with agent(running, token_of(running, project="theirs")) as client:
        assert [run["run_id"] for run in (await ask(client, "list_runs"))["runs"]] == ["hidden"]
        assert [run["run_id"] for run in (await ask(client, "runs_at_risk"))["runs_at_risk"]] == ["hidden"]
        assert {item["run_id"] for item in (await ask(client, "list_alerts"))["alerts"]} == {"hidden"}
        for tool, arguments in (
            ("explain_alert", {"alert_id": alert["id"]}),
            ("series_around", {"run_id": "failing"}),
            ("layers_around", {"run_id": "failing"}),
            ("list_alerts", {"run_id": "failing"}),
            ("compare_runs", {"first_run_id": "hidden", "second_run_id": "failing"}),
        ):
            assert "does not exist" in await refused(client, tool, **arguments)
        for tool in ("list_runs", "runs_at_risk", "what_was_tried"):
            assert "not for the project 'mine'" in await refused(client, tool, project="mine")


async def test_a_question_that_cannot_be_answered_says_what_can(running: RunningServer) -> None:
    async with agent(running, token_of(running)) as client:
        assert "GET /api/v1/runs lists them" in await refused(client, "series_around", run_id="none")
        assert "it has a,b, loss, lr" in await refused(client, "series_around", run_id="calm", scalars=["accuracy"])
        assert "grad_norm, update_norm" in await refused(client, "layers_around", run_id="calm", statistic="v_rms")
        assert "does not exist" in await refused(client, "explain_alert", alert_id="none")
        for tool, arguments, field in (
            ("series_around", {"run_id": "calm", "step": -1}, "step"),
            ("series_around", {"run_id": "calm", "step": "last"}, "step"),
            ("series_around", {"run_id": "calm", "scalars": ["loss"] * 13}, "scalars"),
            ("series_around", {}, "run_id"),
            ("layers_around", {"run_id": "x" * 129}, "run_id"),
            ("list_runs", {"limit": 1_000}, "limit"),
            ("list_runs", {"state": "asleep"}, "state"),
        ):
            assert field in await refused(client, tool, **arguments)
        assert "no_such_tool" in await refused(client, "no_such_tool")
        assert (await ask(client, "what_was_tried", project="nothing here"))["runs"] == []
        empty = await ask(client, "series_around", run_id="calm", step=100_000, before=0, after=0)
        assert empty["series"] == {}


def test_without_a_valid_token_nothing_is_told(running: RunningServer) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    headers = {"Accept": "application/json, text/event-stream"}
    missing = httpx.post(f"{running.url}/mcp", json=body, headers=headers)
    assert (missing.status_code, missing.json()["error"]) == (401, "unauthenticated")
    assert missing.headers["www-authenticate"] == "Bearer"
    with running.api() as api:
        made = api.post("/tokens", json={"scope": "read"}).json()
        api.delete(f"/tokens/{made['id']}")
    for token in ("wrong", made["token"]):
        answer = httpx.post(f"{running.url}/mcp", json=body, headers={**headers, "Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["error"]) == (401, "unauthenticated")
    assert httpx.get(f"{running.url}/mcp").status_code == 405
    valid = {**headers, **running.headers, "Content-Type": "application/json"}
    assert httpx.post(f"{running.url}/mcp", content=b"{no json", headers=valid).status_code == 400
    big = b"[" + b" " * 20_000_000 + b"]"
    assert httpx.post(f"{running.url}/mcp", content=big, headers=valid).status_code == 413
