"""Reading runs over HTTP: answers, bounds, and codes for what is wrong."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator

import httpx
import msgspec
import numpy as np
import pytest

from server.auth.tokens import digest_of
from server.models import Scope
from server.storage.database import Database
from server.storage.tokens import TokenStore
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, histogram, record


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two projects; the run "full" has everything, "empty" nothing."""
    with running_server(tmp_path_factory.mktemp("filled")) as server:
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello("full", "one", name="a run", tags=("a", "b"), config={"lr": 0.1}, started_at=100.0)
            writer.commit(*(record(step, float(step), block=[[step, 1], [2, 3]]) for step in range(100)))
            writer.commit(record(100, math.nan, block=[[math.inf, 1], [math.nan, 3]]))
            writer.commit(record(101, histograms=(histogram("update", [[1] * 64, [3] * 64]),)))
        for number, project in enumerate(["project", "other", "other"]):
            with server.connect("/ingest") as socket:
                Writer(socket).hello(
                    f"empty{number}", f"w{number}", project=project, layouts=(), started_at=200.0 + number
                )
        yield server


@pytest.fixture
def api(filled: RunningServer) -> Iterator[httpx.Client]:
    with filled.api() as client:
        yield client


def make_token(server: RunningServer, token: str, scope: Scope, project: str | None = None) -> str:
    async def make() -> None:
        database = Database(server.database_url)
        await TokenStore(database).create(digest_of(token), scope, project, "", time.time())
        await database.close()

    asyncio.run(make())
    return token


def test_runs_come_newest_first_and_in_pages(api: httpx.Client) -> None:
    page = api.get("/runs", params={"limit": 3}).json()
    assert [run["id"] for run in page["runs"]] == ["empty2", "empty1", "empty0"]
    rest = api.get("/runs", params={"limit": 3, "cursor": page["next_cursor"]}).json()
    assert [run["id"] for run in rest["runs"]] == ["full"]
    assert rest["next_cursor"] is None
    assert [run["id"] for run in api.get("/runs", params={"project": "other"}).json()["runs"]] == ["empty2", "empty1"]
    assert api.get("/runs", params={"state": "crashed"}).json() == {"runs": [], "next_cursor": None}


def test_a_run_has_the_keys_of_the_contract(api: httpx.Client) -> None:
    run = api.get("/runs/full").json()
    expected = {
        "id": "full",
        "project": "project",
        "name": "a run",
        "state": "running",
        "created_at": 100.0,
        "last_step": 101,
        "open_alerts": run["open_alerts"],
        "layer_count": 2,
        "parameter_count": 70,
        "tags": ["a", "b"],
        "config": {"lr": 0.1},
        "layers": ["first", "second"],
        "scalars": ["loss"],
        "statistics": ["grad_norm", "update_norm", "bimodality"],
    }
    assert expected.items() <= run.items()
    assert {"step_rate", "loss", "stage", "stability_ratio", "sparkline", "predicted_step", "last_alert"} <= run.keys()


def test_buckets_are_aligned_whatever_the_range(api: httpx.Client) -> None:
    whole = api.get("/runs/full/series", params={"keys": "loss", "points": 10}).json()
    assert whole["bucket_steps"] == 16
    assert whole["series"]["loss"]["step"] == [0, 16, 32, 48, 64, 80, 96]
    assert whole["series"]["loss"]["nonfinite"][-1] == 1
    part = api.get("/runs/full/series", params={"keys": "loss", "points": 10, "from": 20, "to": 90}).json()
    assert (part["step_from"], part["step_to"], part["bucket_steps"]) == (20, 90, 8)
    assert part["series"]["loss"]["step"] == list(range(16, 91, 8))
    assert part["series"]["loss"]["min"][0] == 20.0
    assert part["series"]["loss"]["max"][-1] == 90.0


def test_a_heatmap_is_the_same_in_json_and_msgpack(api: httpx.Client) -> None:
    params = {"stat": "grad_norm", "columns": "200"}
    as_json = api.get("/runs/full/heatmap", params=params).json()
    answer = api.get("/runs/full/heatmap", params=params, headers={"Accept": "application/msgpack"})
    assert answer.headers["content-type"] == "application/msgpack"
    packed = msgspec.msgpack.decode(answer.content)
    z = np.frombuffer(packed.pop("z"), "<f4").reshape(2, 102)
    assert packed == {key: value for key, value in as_json.items() if key != "z"}
    assert [[None if not math.isfinite(value) else value for value in row] for row in z.tolist()] == as_json["z"]
    assert (z[0, 50], z[0, 100], as_json["nonfinite"]) == (50.0, np.inf, [[0, 100, 1]])
    assert np.isnan(z[1, 100])


def test_reduce_says_what_of_a_bucket_is_shown(api: httpx.Client) -> None:
    shown = {}
    for reduce in ("max", "min", "last"):
        params = {"stat": "grad_norm", "columns": "1", "reduce": reduce, "from": "10", "to": "20"}
        shown[reduce] = api.get("/runs/full/heatmap", params=params).json()["z"][0]
    assert shown == {"max": [20.0], "min": [10.0], "last": [20.0]}


def test_the_attempts_of_a_run_can_be_asked_for_and_no_others(filled: RunningServer, api: httpx.Client) -> None:
    with filled.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello("restarted", "r", project="other")
        writer.commit(*(record(step, 1.0, block=[[1, 2], [3, 4]]) for step in range(10)))
        writer.commit(*(record(step, 2.0, block=[[1, 2], [3, 4]]) for step in range(5, 20)))
    for path in ("series?keys=loss", "heatmap?stat=grad_norm"):
        found = [api.get(f"/runs/restarted/{path}&attempt={attempt}").status_code for attempt in range(4)]
        assert found == [200, 200, 404, 404]
        refusal = api.get(f"/runs/restarted/{path}&attempt=2").json()
        assert (refusal["error"], refusal["field"]) == ("unknown_attempt", "attempt")
        assert api.get(f"/runs/empty0/{path}&attempt=0").status_code == 200, "its first attempt has not begun to log"


def test_an_empty_run_gives_empty_answers(api: httpx.Client) -> None:
    series = api.get("/runs/empty0/series", params={"keys": "loss,lambda_max"}).json()["series"]
    nothing: dict[str, list[float]] = {"step": [], "min": [], "max": [], "last": [], "nonfinite": []}
    assert series == {"loss": nothing, "lambda_max": nothing}
    heatmap = api.get("/runs/empty0/heatmap", params={"stat": "grad_norm"}).json()
    assert heatmap == {"layers": [], "step": [], "bucket_steps": 1, "z": [], "nonfinite": []}
    assert api.get("/runs/empty0/events").json() == []
    assert api.get("/alerts", params={"run": "empty0"}).json() == []
    missing = api.get("/runs/full/histogram", params={"layer": "first", "which": "ratio"}).json()
    assert (missing["step"], missing["counts"]) == (None, [])
    beyond = api.get("/runs/full/series", params={"keys": "loss", "from": 5_000, "to": 6_000}).json()
    assert (beyond["step_from"], beyond["series"]["loss"]) == (5_000, nothing)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/runs/none", 404, "unknown_run"),
        ("/runs/none/series?keys=loss", 404, "unknown_run"),
        ("/runs/none/heatmap?stat=grad_norm", 404, "unknown_run"),
        ("/runs/none/events", 404, "unknown_run"),
        ("/alerts?run=none", 404, "unknown_run"),
        ("/runs/full/series?keys=typo", 404, "unknown_scalar"),
        ("/runs/full/heatmap?stat=typo", 404, "unknown_statistic"),
        ("/runs/full/histogram?layer=typo", 404, "unknown_layer"),
        ("/runs/full/series", 400, "invalid_parameter"),
        ("/runs/full/series?keys=,", 400, "invalid_parameter"),
        ("/runs/full/series?keys=loss&points=0", 400, "invalid_parameter"),
        ("/runs/full/series?keys=loss&points=1000000", 400, "invalid_parameter"),
        ("/runs/full/series?keys=loss&from=-1", 400, "invalid_parameter"),
        ("/runs/full/series?keys=loss&from=9223372036854775808", 400, "invalid_parameter"),
        ("/runs/full/series?keys=loss&from=10&to=5", 400, "invalid_range"),
        ("/runs/full/heatmap?stat=grad_norm&from=10&to=5", 400, "invalid_range"),
        ("/runs/full/heatmap?stat=grad_norm&columns=0", 400, "invalid_parameter"),
        ("/runs/full/heatmap?stat=grad_norm&reduce=mean", 400, "invalid_parameter"),
        ("/runs?limit=0", 400, "invalid_parameter"),
        ("/runs/full/series?keys=loss&attempt=1", 404, "unknown_attempt"),
        ("/runs/full/heatmap?stat=grad_norm&attempt=7", 404, "unknown_attempt"),
        ("/runs/full/heatmap?stat=grad_norm&attempt=-1", 400, "invalid_parameter"),
        ("/runs?state=running&state=asleep", 400, "invalid_parameter"),
        ("/alerts?run=full&run=none", 404, "unknown_run"),
        ("/runs?cursor=nonsense", 400, "invalid_cursor"),
        ("/runs?state=asleep", 400, "invalid_parameter"),
        ("/nothing/here", 404, "not_found"),
    ],
)
def test_what_is_wrong_has_a_code(api: httpx.Client, path: str, status: int, code: str) -> None:
    answer = api.get(path)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert answer.json()["message"]


def test_what_is_not_in_the_document_is_not_found(api: httpx.Client) -> None:
    answer = api.delete("/nothing")
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    assert api.delete("/runs").status_code == 405
    assert api.post("/alerts/none/acknowledge").json()["error"] == "unknown_alert"


def test_without_a_token_nothing_is_told(filled: RunningServer) -> None:
    with httpx.Client(base_url=f"{filled.url}/api/v1") as anonymous:
        for path in ("/runs", "/runs/full", "/alerts", "/runs/none"):
            answer = anonymous.get(path)
            assert (answer.status_code, answer.json()["error"]) == (401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert anonymous.get("/runs", headers={"Authorization": "Basic abc"}).status_code == 401
    told = {}
    with filled.api() as admin:
        made = admin.post("/tokens", json={"scope": "read"}).json()
        admin.delete(f"/tokens/{made['id']}")
    for name, token in (("unknown", "sw_nobody"), ("revoked", made["token"]), ("login", "sws_nobody")):
        with filled.api(token) as refused:
            answer = refused.get("/runs")
            assert (answer.status_code, answer.json()["error"]) == (401, "unauthenticated")
            assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
            told[name] = answer.json()["message"]
            with filled.connect("/live", token=token) as socket:
                assert told[name] in str(socket.recv())
            metrics = httpx.get(f"{filled.url}/metrics", headers={"Authorization": f"Bearer {token}"})
            assert (metrics.status_code, told[name] in metrics.json()["message"]) == (401, True)
    assert len(set(told.values())) == 3
    assert httpx.get(f"{filled.url}/healthz").json() == {"status": "ok"}
    ready = httpx.get(f"{filled.url}/readyz").json()
    assert ready == {"status": "ok", "checks": {"database": "ok", "schema": "ok"}}


def test_a_token_of_one_project_sees_no_other(filled: RunningServer) -> None:
    token = make_token(filled, "sw_project_reader_00000", Scope.READ, "other")
    with filled.api(token) as api:
        assert {run["project"] for run in api.get("/runs").json()["runs"]} == {"other"}
        assert api.get("/runs/full").status_code == 404
        assert api.get("/runs/full/series", params={"keys": "loss"}).json()["error"] == "unknown_run"
        assert api.get("/runs", params={"project": "project"}).status_code == 403
        assert api.get("/runs/empty1").status_code == 200


def test_a_token_for_reading_changes_nothing(filled: RunningServer) -> None:
    token = make_token(filled, "sw_reader_000000000000", Scope.READ)
    with filled.api(token) as api:
        assert api.post("/alerts/none/acknowledge").json()["error"] == "forbidden"
    with filled.connect("/ingest", token=token) as socket:
        from client_sdk.protocol import Error

        assert Writer(socket).expect(Error).code == "forbidden"


def test_a_token_for_writing_writes_to_its_project_alone(filled: RunningServer) -> None:
    from client_sdk.protocol import Error

    token = make_token(filled, "sw_writer_000000000000", Scope.WRITE, "mine")
    with filled.connect("/ingest", token=token) as socket:
        Writer(socket).hello("mine", "mine", project="mine")
    for fields in ({"project": "project"}, {"project": "mine", "run_id": "full"}):
        with filled.connect("/ingest", token=token) as socket:
            writer = Writer(socket)
            writer.send_hello(**{"run_id": "another", "writer": "x", **fields})
            assert writer.expect(Error).code == "forbidden"


def test_histograms_over_a_range_come_in_order_and_thinned_evenly(filled: RunningServer, api: httpx.Client) -> None:
    with filled.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello("shapes", "shapes")
        writer.commit(
            *(record(step, histograms=(histogram("ratio", [[step] * 64, [0] * 64]),)) for step in range(0, 100, 10))
        )
    address = "/runs/shapes/histograms"
    found = api.get(address, params={"layer": "first", "which": "ratio"}).json()
    assert [item["step"] for item in found] == list(range(0, 100, 10))
    assert found[3]["counts"] == [30] * 64
    assert found[3] == api.get("/runs/shapes/histogram", params={"layer": "first", "which": "ratio", "step": 30}).json()
    some = api.get(address, params={"layer": "first", "which": "ratio", "from": 15, "to": 90, "limit": 3}).json()
    assert [item["step"] for item in some] == [20, 60, 90]
    assert len(api.get(address, params={"layer": "first", "which": "ratio", "limit": 1}).json()) == 1
    assert api.get(address, params={"layer": "first"}).json() == []
    assert api.get(address, params={"layer": "none"}).status_code == 404
    assert api.get(address, params={"layer": "first", "from": 9, "to": 3}).status_code == 400


def test_the_openapi_document_names_every_call(filled: RunningServer) -> None:
    paths = httpx.get(f"{filled.url}/api/v1/openapi.json").json()["paths"]
    assert {
        "/api/v1/runs",
        "/api/v1/runs/{run_id}",
        "/api/v1/runs/{run_id}/series",
        "/api/v1/runs/{run_id}/heatmap",
        "/api/v1/runs/{run_id}/histogram",
        "/api/v1/runs/{run_id}/histograms",
        "/api/v1/runs/{run_id}/events",
        "/api/v1/alerts",
        "/api/v1/alerts/{alert_id}/acknowledge",
        "/api/v1/alerts/{alert_id}/silence",
    } <= paths.keys()
