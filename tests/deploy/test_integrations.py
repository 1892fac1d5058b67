"""The Grafana dashboard queries what a real server exports, and the Slack app has the scopes that the code needs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.api.run_risk import MAX_RUNS, RunRisk
from server.metrics import Metrics
from server.storage.alerts import AlertStore
from server.storage.database import Database
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.runs import RunStore
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
MANIFEST: dict[str, Any] = json.loads((ROOT / "deploy" / "slack-app-manifest.json").read_text())
SCOPES = {"chat_postMessage": "chat:write", "files_upload_v2": "files:write"}
"""Scope that each method of Slack's API needs, by the name of its function in slack-sdk."""
FUNCTIONS = {"by", "sum", "max", "min", "count", "vector", "increase", "rate", "histogram_quantile", "or"}
RUNS = MAX_RUNS + 3


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """More runs at risk than are named, one of them with quotes and a line break in its name, and a healthy one."""
    with running_server(tmp_path_factory.mktemp("grafana")) as server:
        for number in range(RUNS):
            with server.connect("/ingest") as socket:
                writer = Writer(socket)
                name = 'a "run"\n\\' if number == RUNS - 1 else f"run {number}"
                writer.hello(f"r{number}", f"w{number}", project="mine", name=name)
                ratio = {"lambda_max": 5.0, "stability_limit": 10.0}
                writer.commit(*(record(step, 1.0 if step < 30 else math.nan, lr=0.1, **ratio) for step in range(40)))  # type: ignore[arg-type]
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello("calm", "calm", project="mine")
            writer.commit(record(0, 1.0))
        with server.api() as api:
            while len({alert["run_id"] for alert in api.get("/alerts?kind=nonfinite").json()}) < RUNS:
                pass
        yield server


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def metric_names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:spikewatch|process)_\w+", expression))


def exported(server: RunningServer) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples of each metric, keyed by the values of their labels in the order of their names.

    A counter with labels that has not counted yet has no samples.
    """
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
        for ending in endings.get(family.type, ("",)):
            found.setdefault(family.name + ending, {})
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_every_metric_that_the_dashboard_queries_is_exported(running: RunningServer) -> None:
    found = exported(running)
    queried = set().union(*map(metric_names, expressions()))
    assert len(queried) > 20
    assert queried <= found.keys()
    own = {
        name for name in found if name.startswith("spikewatch_") and not name.endswith(("_created", "_sum", "_count"))
    }
    assert queried >= own, "every metric of the server has its place"


def test_every_label_that_the_dashboard_uses_is_documented_for_its_metric() -> None:
    page = (ROOT / "docs" / "reference" / "server-metrics.md").read_text()
    labels = {
        name: set(re.findall(r"`(\w+)`", row)) | {"job", "instance"}
        for name, row in re.findall(r"^\| `(spikewatch_\w+)` \|([^|]*)\|", page, re.MULTILINE)
    }
    for expression in expressions():
        for name in metric_names(expression) - {"process_resident_memory_bytes"}:
            known = labels[name.removesuffix("_bucket")]
            used = set(re.findall(r"(\w+)=~?!?\"|(\w+)!=\"", expression))
            chosen = {label for pair in used for label in pair if label}
            grouped = {
                label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")
            }
            assert chosen | grouped <= known | {"le"}, (name, expression)


def test_the_dashboard_can_be_imported_anywhere() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "job"}
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        for target in panel.get("targets", ()):
            words = set(re.findall(r"[a-z_]\w*(?=\s*\()", target["expr"]))
            assert words <= FUNCTIONS, target["expr"]
            assert target["expr"].count("(") == target["expr"].count(")")
            assert target["expr"].count("{") == target["expr"].count("}")


def test_the_metrics_of_runs_are_bounded_and_name_the_runs_at_risk(running: RunningServer) -> None:
    found = exported(running)
    assert found["spikewatch_runs"][("running",)] == RUNS + 1
    assert found["spikewatch_runs"][("crashed",)] == 0
    assert found["spikewatch_open_alerts"]["nonfinite", "critical"] == RUNS
    risk = found["spikewatch_run_risk"]
    assert len(risk) == MAX_RUNS
    assert set(risk.values()) == {3.0}
    assert all(project == "mine" and run_id != "calm" for project, _, run_id in risk)
    assert found["spikewatch_run_stability_ratio"] == dict.fromkeys(risk, 0.5)


def test_the_name_of_a_run_cannot_break_the_page(running: RunningServer) -> None:
    names = {run for _, run, _ in exported(running)["spikewatch_run_risk"]}
    with running.api() as api:
        newest = api.get("/runs/" + f"r{RUNS - 1}").json()["name"]
    assert newest in names, "the newest alerts come first"


async def test_without_a_database_there_are_no_metrics_of_runs_and_the_others_remain(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/none.sqlite3")
    metrics = Metrics("1")
    layouts = LayoutStore(database)
    clock = [0.0]
    risk = RunRisk(
        metrics,
        FleetQuery(database, RunStore(database), layouts),
        AlertStore(database),
        monotonic=lambda: clock[0],
    )
    for seconds in (0.0, 1.0, 100.0):
        clock[0] = seconds
        await risk.refresh()
    page = metrics.page().decode()
    assert "spikewatch_build_info" in page
    assert not re.search(r"^spikewatch_run", page, re.MULTILINE)
    await database.close()


def test_the_slack_app_has_the_scopes_of_the_calls_in_the_code_and_no_others() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "server" / "notifications").rglob("*.py"))
    calls = set(re.findall(r"\.((?:chat|files|conversations|reactions|users|views|auth)_\w+)\(", sources))
    assert calls == SCOPES.keys()
    assert set(MANIFEST["oauth_config"]["scopes"]["bot"]) == set(SCOPES.values())
    assert not MANIFEST["settings"]["interactivity"]["is_enabled"], "buttons are links; nothing receives their press"


def test_the_slack_app_keeps_the_limits_of_its_texts() -> None:
    """Lengths from https://docs.slack.dev/reference/app-manifest."""
    information = MANIFEST["display_information"]
    assert len(information["name"]) <= 35
    assert len(information["description"]) <= 140
    assert 174 <= len(information["long_description"]) <= 4000
    assert re.fullmatch(r"#[0-9a-f]{6}", information["background_color"])
    assert len(MANIFEST["features"]["bot_user"]["display_name"]) <= 80
