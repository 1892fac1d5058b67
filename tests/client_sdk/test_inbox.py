"""A callback hears each change of an alert once."""

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
    """An inbox and what a callback of it heard."""

    def __init__(self) -> None:
        self.heard: list[TrainingAlert] = []
        self.inbox = AlertInbox(Warner(), began_at=BEGAN)
        self.inbox.add(self.heard.append)

    def after(self, *alerts: Alert) -> list[tuple[str, str]]:
        """What is heard when the server tells these."""
        self.heard.clear()
        for alert in alerts:
            self.inbox.deliver(alert)
        self.inbox.tell()
        return [(alert.id, alert.change) for alert in self.heard]


@pytest.fixture
def listener() -> Listener:
    return Listener()


def alert(name: str = "a", **fields: Any) -> Alert:
    values = {
        "id": name, "run_id": "r", "kind": "spike-predicted", "level": "watch", "state": "open", "step": 5,
        "title": "t", "message": "m", "opened_at": BEGAN + 1, **fields,
    }  # fmt: skip
    return Alert(**values)


def test_opened_escalated_and_resolved_are_told_apart_and_once(listener: Listener) -> None:
    told = listener.after(
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
    assert told == [("a", "opened"), ("a", "escalated"), ("a", "resolved")]


def test_what_is_told_again_after_a_reconnection_is_heard_once(listener: Listener) -> None:
    assert listener.after(alert("before")) == [("before", "opened")]
    told = listener.after(
        alert("before", state="resolved"), alert("came and went", state="resolved"), alert("while away")
    )
    assert told == [("before", "resolved"), ("came and went", "resolved"), ("while away", "opened")]
    assert listener.after(alert("before", state="resolved"), alert("while away")) == []


def test_a_continued_run_hears_of_what_is_still_open_and_not_of_the_past(listener: Listener) -> None:
    assert listener.after(alert("old", opened_at=10.0), alert("over", opened_at=10.0, state="resolved")) == [
        ("old", "opened")
    ]


def test_the_alert_is_the_one_that_was_sent(listener: Listener) -> None:
    sent = alert(predicted_step=PredictedStep(low=1, best=2, high=3), evidence={"x": 1})
    listener.after(sent)
    (heard,) = listener.heard
    assert isinstance(heard, Alert)
    assert {**msgspec.structs.asdict(heard), "change": None} == {**msgspec.structs.asdict(sent), "change": None}


def test_a_date_that_moves_is_known_though_it_is_not_told(listener: Listener) -> None:
    assert listener.after(alert()) == [("a", "opened")]
    moved = alert(predicted_step=PredictedStep(low=7, best=8, high=9))
    assert listener.after(moved) == []
    assert listener.inbox.open == (moved,)
    listener.after(alert(state="resolved"))
    assert len(listener.inbox.open) == 0


def test_memory_is_bounded(listener: Listener) -> None:
    listener.after(*(alert(str(number)) for number in range(3 * MAX_KNOWN)))
    assert len(listener.inbox.open) == MAX_KNOWN


def test_of_an_alert_that_is_over_the_id_alone_is_kept(listener: Listener) -> None:
    over = alert(state="resolved")
    held = sys.getrefcount(over)
    assert listener.after(over) == [("a", "resolved")]
    listener.heard.clear()
    assert sys.getrefcount(over) == held
    assert listener.after(alert(), over) == []
