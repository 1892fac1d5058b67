"""The audit of a run: from a training with a fault over a real server to the API, and its dismissal for a project."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from campaigns.audit.fault import Training
from client_sdk.config import Settings
from client_sdk.protocol import Audit, AuditFinding, Record
from client_sdk.run import Run
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("audit")) as started:
        yield started


def record(step: int, audit: Audit | None = None) -> Record:
    return Record(step=step, time=1_000_000.0 + step, scalars={"loss": 1.0}, audit=audit)


def finding(check: str = "tied-weights", **values: object) -> AuditFinding:
    return AuditFinding(**{"check": check, "message": "two were one", **values})  # type: ignore[arg-type]


def send(server: RunningServer, run_id: str, *records: Record, writer: str | None = None, **fields: object) -> None:
    with server.connect("/ingest") as socket:
        sender = Writer(socket)
        sender.hello(run_id, writer=writer or run_id, **fields)
        sender.commit(*records)
        sender.finish()


def test_a_fault_in_a_training_is_on_the_api_with_evidence_and_source(server: RunningServer, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    settings = Settings.resolve(
        project="p", directory=tmp_path, environ={}, mode="online", url=server.url, token=server.token
    )
    run = Run(settings)
    training = Training(run)
    training.watch()
    training.steps(6, zero=False)
    run.finish()
    with server.api() as api:
        audit = api.get(f"/runs/{run.id}/audit").json()
        (event,) = (event for event in api.get(f"/runs/{run.id}/events").json() if event["kind"] == "audit")
    (found,) = audit["findings"]
    assert (found["check"], found["step"], found["dismissed"]) == ("gradients-not-zeroed", 2, False)
    assert found["evidence"] == {"steps": 2, "optimizer_step": 3}
    assert found["source"] == "torch.optim.Optimizer.zero_grad"
    assert "zero_grad()" in found["advice"]
    assert (event["check"], event["step"], event["message"]) == ("gradients-not-zeroed", 2, found["message"])
    checks = {check["name"]: check for check in audit["checks"]}
    assert checks["dead-parameters"]["runs"] >= 4
    assert checks["dead-parameters"]["last_step"] >= 3
    assert checks["tied-weights"]["claim"] if "tied-weights" in checks else True


def test_a_finding_is_stored_once_for_each_run_and_check_and_counts_of_writers_are_added(server: RunningServer) -> None:
    first = Audit(runs={"tied-weights": 4, "dead-layer": 2}, findings=(finding(step=3),))
    send(server, "once", record(0), record(5, first), record(9, Audit(runs={"tied-weights": 7})))
    again = Audit(runs={"tied-weights": 5}, findings=(finding(message="again"), finding("dead-layer")))
    send(server, "once", record(10, again), writer="restarted")
    with server.api() as api:
        audit = api.get("/runs/once/audit").json()
        events = [event for event in api.get("/runs/once/events").json() if event["kind"] == "audit"]
    assert [(each["check"], each["step"], each["message"]) for each in audit["findings"]] == [
        ("tied-weights", 3, "two were one"),
        ("dead-layer", 10, "two were one"),
    ]
    assert [(each["name"], each["runs"], each["last_step"]) for each in audit["checks"]] == [
        ("tied-weights", 12, 10),
        ("dead-layer", 2, 5),
    ]
    assert [event["check"] for event in events] == ["tied-weights", "dead-layer"]


def test_a_project_dismisses_the_findings_of_a_check_and_shows_them_again(server: RunningServer) -> None:
    send(server, "mine", record(0, Audit(findings=(finding(),))), project="team/mine")
    send(server, "other", record(0, Audit(findings=(finding(),))), project="other")

    def dismissed(run_id: str) -> bool:
        with server.api() as api:
            (found,) = api.get(f"/runs/{run_id}/audit").json()["findings"]
        return bool(found["dismissed"])

    with server.api() as api:
        answer = api.put("/projects/team/mine/audit", json={"check": "tied-weights"}).json()
        assert answer == {"project": "team/mine", "checks": ["tied-weights"]}
        assert api.get("/projects/team/mine/audit").json() == answer
    assert (dismissed("mine"), dismissed("other")) == (True, False)
    send(server, "later", record(0, Audit(findings=(finding(),))), project="team/mine")
    assert dismissed("later")
    with server.api() as api:
        body = {"check": "tied-weights", "dismissed": False}
        assert api.put("/projects/team/mine/audit", json=body).json()["checks"] == []
    assert not dismissed("mine")


def test_a_check_that_the_server_does_not_know_is_kept_under_its_name(server: RunningServer) -> None:
    strange = finding("of-tomorrow", evidence={"x": math.nan, "y": "a\0b"})
    send(server, "strange", record(0, Audit(runs={"of-tomorrow": 1}, findings=(strange,))))
    with server.api() as api:
        audit = api.get("/runs/strange/audit").json()
    assert audit["checks"] == [{"name": "of-tomorrow", "claim": "of-tomorrow", "runs": 1, "last_step": 0}]
    assert audit["findings"][0]["title"] == "of-tomorrow"
    assert audit["findings"][0]["evidence"] == {"x": None, "y": "ab"}


def test_a_run_that_nothing_was_checked_in_says_so(server: RunningServer) -> None:
    send(server, "silent", record(0))
    with server.api() as api:
        assert api.get("/runs/silent/audit").json() == {"checks": [], "findings": []}
        assert api.get("/runs/nobody/audit").status_code == 404
