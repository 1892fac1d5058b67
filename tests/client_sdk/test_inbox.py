"""Callbacks receive each change of an alert once."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest

from client_sdk.inbox import MAX_KNOWN, AlertInbox, TrainingAlert
from client_sdk.protocol import Alert, PredictedStep
from client_sdk.warner import Warner

BEGAN = 1_000.0


class Listener:
    """An inbox with a callback that collects what it receives."""

    def __init__(self) -> None:
        self.received: list[TrainingAlert] = []
        self.inbox = AlertInbox(Warner(), began_at=BEGAN)
        self.inbox.add(self.received.append)

    def after(self, *alerts: Alert) -> list[tuple[str, str]]:
        """Return the changes that the callback receives after the server has sent these alerts."""
        self.received.clear()
        for alert in alerts:
            self.inbox.receive(alert)
        self.inbox.call_callbacks()
        return [(alert.id, alert.change) for alert in self.received]


@pytest.fixture
def listener() -> Listener:
    return Listener()


def alert(name: str = "a", **fields: Any) -> Alert:
    values = {
        "id": name, "run_id": "r", "kind": "spike-predicted", "level": "watch", "state": "open", "step": 5,
        "title": "t", "message": "m", "opened_at": BEGAN + 1, **fields,
    }  # fmt: skip
    return Alert(**values)


def test_opened_escalated_and_resolved_are_reported_once_each(listener: Listener) -> None:
    changes = listener.after(
        alert(),
        alert(),
        alert(message="more evidence", updated_step=55),
        alert(level="warning"),
        alert(level="warning", state="acknowledged"),
        alert(level="warning"),
        alert(level="warning", state="resolved"),
        alert(level="warning", state="resolved"),
        alert(level="warning"),
    )
    assert changes == [("a", "opened"), ("a", "escalated"), ("a", "resolved")]


def test_alert_that_is_sent_again_after_a_reconnection_is_reported_once(listener: Listener) -> None:
    assert listener.after(alert("before")) == [("before", "opened")]
    changes = listener.after(
        alert("before", state="resolved"), alert("came and went", state="resolved"), alert("while away")
    )
    assert changes == [("before", "resolved"), ("came and went", "resolved"), ("while away", "opened")]
    assert listener.after(alert("before", state="resolved"), alert("while away")) == []


def test_continued_run_receives_open_alerts_and_not_those_resolved_before(listener: Listener) -> None:
    assert listener.after(alert("old", opened_at=10.0), alert("over", opened_at=10.0, state="resolved")) == [
        ("old", "opened")
    ]


def test_callback_receives_the_alert_that_was_sent(listener: Listener) -> None:
    sent = alert(predicted_step=PredictedStep(low=1, best=2, high=3), evidence={"x": 1})
    listener.after(sent)
    (received,) = listener.received
    assert isinstance(received, Alert)
    assert {**msgspec.structs.asdict(received), "change": None} == {**msgspec.structs.asdict(sent), "change": None}


def test_moved_forecast_is_stored_without_a_report(listener: Listener) -> None:
    assert listener.after(alert()) == [("a", "opened")]
    moved = alert(predicted_step=PredictedStep(low=7, best=8, high=9))
    assert listener.after(moved) == []
    assert listener.inbox.open == (moved,)
    listener.after(alert(state="resolved"))
    assert len(listener.inbox.open) == 0


def test_memory_is_bounded(listener: Listener) -> None:
    listener.after(*(alert(str(number)) for number in range(3 * MAX_KNOWN)))
    assert len(listener.inbox.open) == MAX_KNOWN


def test_only_the_id_of_a_resolved_alert_is_kept(listener: Listener) -> None:
    resolved = alert(state="resolved")
    references = sys.getrefcount(resolved)
    assert listener.after(resolved) == [("a", "resolved")]
    listener.received.clear()
    assert sys.getrefcount(resolved) == references
    assert listener.after(alert(), resolved) == []
