"""Runs that end in trouble, through a real server: what the alerts, the run and Slack say afterwards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.server import RunningServer, running_server
from tests.support.slack import SlackServer
from tests.support.writer import Writer, record

STEPS = 120
BROKEN_AT = 90
DIVERGED = [2.0 + 0.05 * (step % 3) for step in range(100)] + [40.0 + 0.05 * (step % 3) for step in range(120)]


@pytest.fixture(scope="module")
def slack() -> Iterator[SlackServer]:
    with SlackServer() as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, slack: SlackServer) -> Iterator[RunningServer]:
    with running_server(
        tmp_path_factory.mktemp("ends"),
        slack_webhook=slack.webhook,
        notify_allow_private=True,
        heartbeat_every=0.1,
        stale_after=1.0,
    ) as started:
        yield started


def losses(*, broken_until: int = STEPS) -> list[float]:
    return [math.nan if BROKEN_AT <= step < broken_until else 2.0 for step in range(STEPS)]


def train(server: RunningServer, run_id: str, values: list[float], end: Callable[[Writer], None]) -> None:
    now = time.time()
    with server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello(run_id, writer=run_id, name=run_id)
        for first in range(0, len(values), 30):
            records = [record(first + i, loss, time=now) for i, loss in enumerate(values[first : first + 30])]
            writer.commit(*records)
        end(writer)


def wait_for(server: RunningServer, run_id: str, accept: Callable[[Any, list[Any]], bool]) -> tuple[Any, list[Any]]:
    """Return the run and its alerts once they are accepted."""
    with server.connect(f"/live?run={run_id}") as live, server.api() as api:
        while True:
            alerts = api.get("/alerts", params={"run": run_id}).json()
            run = api.get(f"/runs/{run_id}").json()  # read last, because it sums up the alerts
            if accept(run, alerts):
                return run, alerts
            live.recv(timeout=20)


def closed(run: Any, alerts: list[Any]) -> bool:
    return run["state"] in ("finished", "crashed") and bool(alerts) and all(one["closed_at"] for one in alerts)


@pytest.mark.parametrize("state", ["finished", "crashed"])
def test_a_run_that_ends_in_nan_stays_marked(server: RunningServer, slack: SlackServer, state: str) -> None:
    run_id = f"nan-{state}"

    def end(writer: Writer) -> None:
        slack.wait_for_message(f"run {run_id}")
        writer.finish(state)

    train(server, run_id, losses(), end)
    run, (alert,) = wait_for(server, run_id, closed)
    assert (alert["kind"], alert["state"], alert["updated_step"]) == ("nonfinite", "ended", STEPS - 1)
    assert alert["message"].endswith("The run ended before it was over.")
    assert (run["state"], run["stage"], run["loss"], run["open_alerts"]) == (state, "non-finite", None, 0)
    assert (run["ended_with"]["id"], run["ended_with"]["kind"]) == (alert["id"], "nonfinite")
    message = slack.wait_for_message(f"The run ended so, at step {STEPS - 1}: {alert['title']}, run {run_id}")
    assert "🏁" in message.text
    assert said_to_be_over(slack, run_id) == []


def test_a_run_that_ends_diverged_stays_marked(server: RunningServer, slack: SlackServer) -> None:
    def end(writer: Writer) -> None:
        slack.wait_for_message("run diverged")
        writer.finish()

    train(server, "diverged", DIVERGED, end)
    run, alerts = wait_for(server, "diverged", closed)
    divergence = next(one for one in alerts if one["kind"] == "divergence")
    assert (divergence["state"], divergence["level"]) == ("ended", "critical")
    assert run["ended_with"]["id"] == divergence["id"]
    slack.wait_for_message(f"The run ended so, at step {len(DIVERGED) - 1}")
    assert said_to_be_over(slack, "diverged") == []


def test_a_silent_run_keeps_its_alerts_open(server: RunningServer, slack: SlackServer) -> None:
    train(server, "silent", losses(), lambda writer: None)
    run, (alert,) = wait_for(server, "silent", lambda run, alerts: run["state"] == "stale" and bool(alerts))
    assert (alert["state"], alert["closed_at"], run["stage"], run["open_alerts"]) == ("open", None, "non-finite", 1)
    slack.wait_for_message("run silent")
    assert said_to_be_over(slack, "silent") == []


def test_a_run_that_goes_on_after_its_end_has_the_same_alert_until_it_is_over(server: RunningServer) -> None:
    values = losses()
    train(server, "resumed", values, lambda writer: writer.finish("crashed"))
    _, (ended,) = wait_for(server, "resumed", closed)
    with server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello("resumed", writer="resumed")
        writer.commit(*(record(STEPS + step, math.nan, time=time.time()) for step in range(10)))
        run, (again,) = wait_for(server, "resumed", lambda run, alerts: alerts[0]["state"] == "open")
        assert (again["id"], again["closed_at"]) == (ended["id"], None)
        assert "The run ended" not in again["message"]
        assert run["ended_with"] is None
        writer.commit(*(record(STEPS + 10 + step, 2.0, time=time.time()) for step in range(80)))
        writer.finish()
    run, (over,) = wait_for(server, "resumed", lambda run, alerts: closed(run, alerts) and run["stage"] != "non-finite")
    assert (over["id"], over["state"], run["ended_with"]) == (ended["id"], "resolved", None)


def test_an_alert_that_was_over_before_the_end_is_resolved(server: RunningServer) -> None:
    train(server, "back", losses(broken_until=BROKEN_AT + 2), lambda writer: writer.finish())
    run, (alert,) = wait_for(server, "back", closed)
    assert (alert["state"], run["ended_with"]) == ("resolved", None)


def said_to_be_over(slack: SlackServer, run_id: str) -> list[str]:
    words = ("Resolved", "Came and went", "ecovered")
    return [one.text for one in slack.messages if run_id in one.text and any(word in one.text for word in words)]
