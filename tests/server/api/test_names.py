"""Lists in the query: repeated parameters add up, and names with commas can be asked for."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import msgspec
import pytest

from client_sdk.answers import LiveFrame, RunPage
from client_sdk.read import Server
from dashboard.client import ApiClient
from dashboard.config import DashboardConfig
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record

VALUES = {"loss": 1.0, "grad": 2.0, "grad,norm": 3.0, "norm": 4.0, "a,b": 5.0}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("names")) as server:
        for run_id, project, state in (
            ("run", "one", "running"),
            ("over", "two", "finished"),
            ("broken", "three", "crashed"),
        ):
            with server.connect("/ingest") as socket:
                writer = Writer(socket)
                writer.hello(run_id, run_id, project=project, layouts=())
                plain = record(0, 1.0)
                writer.commit(msgspec.structs.replace(plain, scalars=VALUES))
                if state != "running":
                    writer.finish(state)
        yield server


@pytest.fixture
def api(running: RunningServer) -> Iterator[httpx.Client]:
    with running.api() as client:
        yield client


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("keys=loss,grad", ["loss", "grad"]),
        ("keys=loss&keys=grad", ["loss", "grad"]),
        ("keys=loss&keys=grad,norm&keys=loss", ["loss", "grad,norm"]),
        ("keys=grad,norm", ["grad,norm"]),
        ("keys=grad&keys=norm", ["grad", "norm"]),
        ("keys=norm,grad", ["norm", "grad"]),
        ("keys=a,b", ["a,b"]),
        ("keys=&keys=loss,,", ["loss"]),
    ],
)
def test_a_series_has_the_names_that_were_asked_for(api: httpx.Client, query: str, names: list[str]) -> None:
    series = api.get(f"/runs/run/series?{query}").json()["series"]
    assert list(series) == names
    assert [series[name]["last"] for name in names] == [[VALUES[name]] for name in names]


def test_a_list_that_names_something_unknown_or_nothing_or_too_much_is_refused(api: httpx.Client) -> None:
    unknown = api.get("/runs/run/series?keys=loss&keys=a,c")
    assert (unknown.status_code, unknown.json()["error"], unknown.json()["field"]) == (404, "unknown_scalar", "keys")
    assert "'a'" in unknown.json()["message"]
    assert api.get("/runs/run/series?keys=&keys=,").json()["field"] == "keys"
    assert api.get("/runs/run/series?" + "&".join(["keys=loss"] * 101)).json()["error"] == "invalid_parameter"


def test_an_export_selects_names_with_commas(running: RunningServer, api: httpx.Client) -> None:
    answer = api.get("/runs/run/export?format=csv&keys=loss&keys=grad,norm")
    assert answer.text.splitlines()[0].endswith('"time","grad,norm","loss"')
    answer = api.get("/runs/run/export?format=csv&keys=")
    assert "loss" not in answer.text.splitlines()[0]
    run = Server(running.url, running.token).run("run")
    assert list(run.series("grad,norm").value) == [3.0]
    assert list(run.to_pandas(["a,b", "loss"])["a,b"]) == [5.0]


async def test_the_dashboards_client_asks_for_names_with_commas(running: RunningServer) -> None:
    client = ApiClient(DashboardConfig(api_url=running.url, token=running.token))
    try:
        found = await client.series("run", ("loss", "grad,norm"), step_from=None, step_to=None, points=10)
    finally:
        await client.aclose()
    assert {name: buckets.last for name, buckets in found.series.items()} == {"loss": (1.0,), "grad,norm": (3.0,)}


def runs(answer: httpx.Response) -> set[str]:
    return {run.id for run in msgspec.json.decode(answer.content, type=RunPage).runs}


def test_repeated_filters_add_up(api: httpx.Client) -> None:
    assert runs(api.get("/runs?state=running")) == {"run"}
    assert runs(api.get("/runs?state=running&state=crashed")) == {"run", "broken"}
    assert runs(api.get("/runs?project=one&project=two")) == {"run", "over"}
    assert runs(api.get("/runs?project=one&project=two&state=finished")) == {"over"}
    assert api.get("/alerts?run=run&run=over&level=watch&level=critical&state=open&state=ended").json() == []
    assert api.get("/alerts?run=run&run=none").json()["error"] == "unknown_run"
    assert api.get("/alerts/precision?project=one&project=two").json()["settled"] == 0


def test_one_project_among_several_that_the_token_does_not_open_is_refused(
    running: RunningServer, api: httpx.Client
) -> None:
    token = api.post("/tokens", json={"scope": "read", "project": "one"}).json()["token"]
    with running.api(token) as narrow:
        for path in ("/runs", "/alerts/precision"):
            answer = narrow.get(f"{path}?project=one&project=two")
            assert (answer.status_code, answer.json()["field"]) == (403, "project")
            assert narrow.get(f"{path}?project=one").status_code == 200


def test_the_live_socket_adds_up_its_runs(running: RunningServer) -> None:
    with running.connect("/live?runs=run,over&runs=broken") as socket:
        frame = msgspec.json.decode(socket.recv(), type=LiveFrame)
        assert frame.runs == ("broken", "over", "run")
