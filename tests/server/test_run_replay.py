"""Replays of stored runs over the API of a real server, and on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from client_sdk.protocol import Layout, Record
from server.cli import app
from server.evaluation.recordings import read_recording
from server.models import Sample
from tests.support.postgres import Postgres
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer

DATA = Path(__file__).parents[1] / "data"


def record_of(sample: Sample) -> Record:
    assert sample.block is not None
    block = np.ascontiguousarray(sample.block, dtype="<f4").tobytes()
    return Record(step=sample.step, time=sample.time, scalars=dict(sample.scalars), layout=0, block=block)


def send(server: RunningServer, run_id: str, samples: list[Sample], project: str = "nets") -> None:
    stored = samples[0].layout
    assert stored is not None
    layout = Layout(
        id=0, layers=stored.layers, statistics=stored.statistics, sizes=stored.sizes, optimizer=stored.optimizer
    )
    with server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello(run_id, writer=run_id, project=project, layouts=(layout,))
        for first in range(0, len(samples), 100):
            writer.commit(*map(record_of, samples[first : first + 100]))
        writer.finish()


@dataclass(frozen=True, kw_only=True)
class Home:
    """Directory and database of a server; the URL is None for the SQLite database in the directory."""

    directory: Path
    database_url: str | None


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    url: str | None = None
    if request.param == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.create_database(is_current=True)
    return Home(directory=tmp_path_factory.mktemp("replays"), database_url=url)


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[RunningServer]:
    """Yield a server with the recorded tanh net as a finished run, on each kind of database in turn."""
    with running_server(home.directory, database_url=home.database_url) as started:
        samples = list(read_recording(DATA / "tanh-net.npz").samples)
        send(started, "net", samples)
        with started.connect("/live?run=net") as live, started.api() as api:
            while len(told := api.get("/alerts", params={"run": "net"}).json()) < 2 or any(
                alert["state"] == "open" for alert in told
            ):
                live.recv(timeout=30)
        yield started


def replay(server: RunningServer, run_id: str = "net", **query: str) -> Any:
    with server.api() as api:
        answer = api.get(f"/runs/{run_id}/replay", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_replay_at_the_usual_sensitivity_tells_what_the_server_told(server: RunningServer) -> None:
    found = replay(server)
    assert (found["complete"], found["sensitivity"]) == (True, "usual")
    assert found["records"] == len(read_recording(DATA / "tanh-net.npz").samples)
    assert found["would"] == found["told"]
    predicted = next(alert for alert in found["would"] if alert["kind"] == "spike-predicted")
    assert predicted["result"] == "hit"
    assert predicted["warned_at_step"] < predicted["predicted_step"]["best"]
    assert found["would_count"] == len(found["would"])


def test_sensitivity_moves_the_warning_and_stores_nothing(server: RunningServer) -> None:
    with server.api() as api:
        before = api.get("/alerts", params={"run": "net"}).json()
    warnings = {}
    for step in ("fewer", "usual", "more"):
        found = replay(server, sensitivity=step)
        assert found["sensitivity"] == step
        warnings[step] = sum(alert["warned_at_step"] is not None for alert in found["would"])
    assert warnings["fewer"] <= warnings["usual"] <= warnings["more"]
    with server.api() as api:
        assert api.get("/alerts", params={"run": "net"}).json() == before


def test_a_token_of_another_project_sees_no_replay(server: RunningServer) -> None:
    with server.api() as api:
        own = api.post("/tokens", json={"scope": "read", "project": "nets"}).json()["token"]
        other = api.post("/tokens", json={"scope": "read", "project": "others"}).json()["token"]
        statuses = []
        for token in (own, other, "wrong"):
            headers = {"Authorization": f"Bearer {token}"}
            statuses.append(api.get("/runs/net/replay", headers=headers).status_code)
    assert statuses == [200, 404, 401]


def test_a_run_or_a_sensitivity_that_does_not_exist_is_refused(server: RunningServer) -> None:
    with server.api() as api:
        assert api.get("/runs/nobody/replay").status_code == 404
        refused = api.get("/runs/net/replay", params={"sensitivity": "twice"})
    assert refused.status_code in (400, 422)
    assert "sensitivity" in refused.text


@pytest.mark.usefixtures("server")
def test_the_command_line_replays_a_run_of_the_database(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--data", str(home.directory / "data")]
    if home.database_url is not None:
        monkeypatch.setenv("SPIKEWATCH_DATABASE_URL", home.database_url)
    answer = CliRunner().invoke(app, ["evaluate", "net", *options])
    assert answer.exit_code == 0, answer.output
    would, _, told = answer.stdout.partition("Was told:")
    assert would.startswith("Would have been told:")
    assert "Spike predicted at step" in would
    assert "hit" in would
    assert told.splitlines()[1:6] == would.splitlines()[1:6]
    assert "sensitivity: usual" in told
    missing = CliRunner().invoke(app, ["evaluate", "nobody", *options])
    assert missing.exit_code == 2
    assert "neither a directory nor a run" in missing.stderr
