"""Alerts reach the callbacks on the training thread, and callbacks cost no step."""

from __future__ import annotations

import functools
import threading

import pytest

from client_sdk.inbox import MAX_WAITING, AlertInbox
from client_sdk.protocol import Alert
from tests.support.ingest_server import IngestServer
from tests.support.logged import MakeRun, alert, kept, warnings_of


def test_alerts_reach_the_training_thread_inside_the_next_log(make_run: MakeRun, server: IngestServer) -> None:
    run = make_run(url=server.url)
    received: list[tuple[str, int]] = []
    run.on_alert(lambda one: received.append((one.id, threading.get_ident())))
    run.log({})
    assert run.flush(20)
    server.push(alert(1))
    server.push(alert(2))
    run.log({})
    assert run.flush(20), "the acknowledgement follows the alerts on the same connection"
    run.log({})
    assert received == [("1", threading.get_ident()), ("2", threading.get_ident())]


def test_callback_that_raises_is_reported_once_and_the_others_are_called(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    received: list[str] = []

    def broken(one: Alert) -> None:
        raise RuntimeError("callback")

    run.on_alert(broken)
    run.on_alert(lambda one: received.append(one.id))
    run.on_alert(3)  # type: ignore[arg-type]
    for number in range(3):
        run.inbox.receive(alert(number))
        run.log({})
    assert received == ["0", "1", "2"]
    (cause,) = (cause for cause in run.status().warnings if cause != "bad_callback")
    assert cause.startswith("callback:")
    assert cause.endswith("broken:RuntimeError")
    assert run.status().warnings == {"bad_callback": 1, cause: 3}
    assert len(warnings_of(caplog)) == 2


def test_flood_of_alerts_drops_the_oldest(make_run: MakeRun) -> None:
    run = make_run()
    received: list[str] = []
    run.on_alert(lambda one: received.append(one.id))
    for number in range(300):
        run.inbox.receive(alert(number))
    run.log({})
    assert received == [str(number) for number in range(300 - MAX_WAITING, 300)]
    assert run.status().warnings == {"alerts_dropped": 300 - MAX_WAITING}


def test_removed_callback_receives_nothing_more(make_run: MakeRun) -> None:
    run = make_run()
    received: list[str] = []

    def callback(one: Alert) -> None:
        received.append(one.id)

    run.on_alert(callback)
    run.inbox.receive(alert(1))
    run.log({})
    run.off_alert(callback)
    run.inbox.receive(alert(2))
    run.log({})
    run.off_alert(callback)
    assert received == ["1"]
    assert run.status().warnings == {"bad_callback": 1}


def test_slow_callback_is_measured_and_reported_and_does_not_slow_the_step(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 10_000, 3))  # each reading of the clock is three seconds later
    inbox = functools.partial(AlertInbox, clock=lambda: float(next(clock)))
    monkeypatch.setattr("client_sdk.run.AlertInbox", inbox)
    run = make_run()
    run.on_alert(lambda one: None)
    run.log({}, step=0)
    run.inbox.receive(alert(1))
    run.log({}, step=1)
    assert run.status().callback_seconds == 9.0
    assert "took 3.0 s" in caplog.text
    # The nine seconds are subtracted from the step, but passed on no real clock.
    assert kept(run)[1].scalars["step_time"] < 0.0


def test_callback_may_log(make_run: MakeRun) -> None:
    run = make_run()
    run.on_alert(lambda one: run.log({"alerts": 1.0}))
    for number in range(2):
        run.inbox.receive(alert(number))
    run.log({"loss": 1.0})
    names = [sorted(record.scalars.keys() - {"step_time"}) for record in kept(run)]
    assert names == [["alerts"], ["alerts"], ["loss"]]
