"""Runs of one project tell each other's outliers: what is said when an alert opens, and when other runs follow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk.protocol import Record
from tests.server.test_live import receive
from tests.support.postgres import Postgres
from tests.support.redis import Redis
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record

STEPS = 300
BAD = 263
"""Step of the batch that several runs read."""


@pytest.fixture(params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningServer]:
    """A server on each of the databases."""
    with contextlib.ExitStack() as stack:
        options = {}
        if request.param == "postgres":
            options["database_url"] = request.getfixturevalue("postgres").create_database(is_current=True)
        yield stack.enter_context(running_server(tmp_path, **options))


def losses(data: int, run: int, height: float = 0.0) -> list[float]:
    """Return the losses of a run with the noise of a data order, a little of its own, and a bad batch."""
    shared, own = np.random.default_rng(data), np.random.default_rng(1_000 + run)
    found = 2 + np.exp(-np.arange(STEPS) / 100) + 0.05 * shared.standard_normal(STEPS)
    found += 0.005 * own.standard_normal(STEPS)
    found[BAD] += height
    return [float(value) for value in found]


def train(server: RunningServer, run_id: str, values: Sequence[float], *, finish: bool = True, **fields: Any) -> None:
    """Send a run with these losses, and wait until its detectors have read them."""
    with server.connect(f"/live?runs={run_id}") as live, server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello(run_id, f"writer of {run_id}", name=f"gpt-{run_id}", layouts=(), **fields)
        writer.send(*records(values))
        writer.wait_for(len(values))
        if finish:
            writer.finish()
        with server.api() as api:
            while (found := api.get(f"/runs/{run_id}").json())["loss"] != values[-1] or found["stage"] is None:
                live.recv(timeout=20)


def records(values: Sequence[float]) -> list[Record]:
    return [record(step, value) for step, value in enumerate(values)]


def alerts(server: RunningServer, run_id: str) -> list[Any]:
    with server.api() as api:
        found: list[Any] = api.get("/alerts", params={"run": run_id}).json()
    return [alert for alert in found if alert["kind"] == "spike"]


def events(server: RunningServer, run_id: str, kind: str = "loss-outlier") -> list[Any]:
    with server.api() as api:
        return [event for event in api.get(f"/runs/{run_id}/events").json() if event["kind"] == kind]


def test_a_spike_names_the_run_that_spiked_at_the_same_step_and_that_run_names_it(server: RunningServer) -> None:
    train(server, "a", losses(1, 1, 3.0))
    (first,) = alerts(server, "a")
    assert (first["coincidence"], first["cause"]) == (None, "unknown")
    train(server, "b", losses(1, 2, 2.5))
    (second,), (first,) = alerts(server, "b"), alerts(server, "a")
    for alert, other in ((second, "a"), (first, "b")):
        assert alert["message"].endswith(f"gpt-{other} spiked at the same step ({BAD}).")
        assert alert["coincidence"]["runs"] == [{"run_id": other, "name": f"gpt-{other}", "step": BAD}]
        assert (alert["cause"], alert["evidence"]["same_step_runs"]) == ("bad-batch", f"gpt-{other}")
        assert "Skip the batch" in alert["advice"][1]
    for run_id, other in (("a", "b"), ("b", "a")):
        for kind in ("loss-outlier", "spike"):
            (event,) = [one for one in events(server, run_id, kind) if one.get("outlier_step", one["step"]) == BAD]
            assert event["coincidence"]["sentence"] == f"gpt-{other} spiked at the same step ({BAD})."


def test_runs_that_pass_the_step_without_it_are_counted_once_each(server: RunningServer) -> None:
    train(server, "a", losses(1, 1, 3.0))
    said = []
    for number, run_id in enumerate("bcd", 2):
        train(server, run_id, losses(1, number))
        (alert,) = alerts(server, "a")
        said.append(alert["coincidence"]["sentence"])
        assert alert["evidence"]["passed_without"] == number - 1
    assert said == [
        f"1 other run passed step {BAD} without it.",
        f"2 other runs passed step {BAD} without it.",
        f"3 other runs passed step {BAD} without it.",
    ]
    train(server, "e", losses(1, 6, 2.0))
    (late,) = alerts(server, "e")
    assert late["message"].endswith(f"gpt-a spiked at the same step ({BAD}). 3 other runs passed it without that.")


def test_a_small_outlier_of_another_data_order_is_not_named(server: RunningServer) -> None:
    train(server, "a", losses(1, 1, 0.5))
    train(server, "b", losses(2, 2, 0.5))
    train(server, "c", losses(1, 3, 0.5))
    (event,) = [event for event in events(server, "a") if event["step"] == BAD]
    assert [run["run_id"] for run in event["coincidence"]["runs"]] == ["c"]
    (event,) = [event for event in events(server, "b") if event["step"] == BAD]
    assert "coincidence" not in event


def test_runs_that_read_other_data_are_no_evidence_against_a_bad_batch(server: RunningServer) -> None:
    train(server, "a", losses(1, 1, 3.0))
    train(server, "b", losses(1, 2, 2.5))
    train(server, "alone", losses(3, 3, 0.45))
    for number, run_id in enumerate("cd", 4):
        train(server, run_id, losses(2, number))
    (event,) = [event for event in events(server, "alone") if event["step"] == BAD]
    assert event["coincidence"]["sentence"] == (
        f"2 other runs passed step {BAD} without it, but their losses show other data."
    )
    (alert,) = alerts(server, "a")
    assert (alert["coincidence"]["passed"], alert["coincidence"]["other_data"]) == (2, 2)
    assert alert["cause"] == "bad-batch"


def test_runs_of_other_projects_are_not_compared(server: RunningServer) -> None:
    train(server, "a", losses(1, 1, 3.0))
    train(server, "b", losses(1, 2, 3.0), project="another")
    assert [alert["coincidence"] for run_id in "ab" for alert in alerts(server, run_id)] == [None, None]


def test_a_changed_alert_of_another_run_reaches_its_viewers(server: RunningServer) -> None:
    train(server, "a", losses(1, 1, 3.0), finish=False)
    with server.connect("/live?runs=a") as live:
        train(server, "b", losses(1, 2, 3.0))
        while (message := receive(live, "alert"))["alert"]["coincidence"] is None:
            pass
    assert message["alert"]["run_id"] == "a"
    assert message["alert"]["coincidence"]["same"] == 1


def test_two_servers_count_each_run_once(tmp_path: Path, postgres: Postgres, redis: Redis) -> None:
    url = postgres.create_database(is_current=True)
    options: dict[str, Any] = {"database_url": url, "redis_url": redis.url, "lease_seconds": 0.6}
    with running_server(tmp_path, **options) as one, running_server(tmp_path, **options) as two:
        train(one, "a", losses(1, 1, 3.0))
        with contextlib.ExitStack() as stack:
            writers = []
            for number in range(6):
                writer = Writer(stack.enter_context((one, two)[number % 2].connect("/ingest")))
                writer.hello(f"r{number}", f"writer {number}", name=f"gpt-{number}", layouts=())
                writers.append(writer)
            live = stack.enter_context(one.connect("/live?runs=a"))
            for number, writer in enumerate(writers):
                writer.send(*records(losses(1, 10 + number, 3.0 if number >= 4 else 0.0)))
            while True:
                (alert,) = alerts(one, "a")
                found = alert["coincidence"] or {"same": 0, "passed": 0}
                if (found["same"], found["passed"]) == (2, 4):
                    break
                live.recv(timeout=20)
    assert alert["coincidence"]["sentence"].endswith(
        f"spiked at the same step ({BAD}). 4 other runs passed it without that."
    )
