"""Tests of the alerts that the page of all alerts lists, and of their incidents."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest

from client_sdk.answers import Alert, Outcome, RunSummary
from dashboard.pages.alert_list import incidents, parse_alert_query
from dashboard.pages.alerts import rows
from tests.dashboard.test_alert_cards import words

RUNS = {
    "r1": RunSummary(id="r1", name="wide", project="nets"),
    "r2": RunSummary(id="r2", name="narrow", project="attic"),
}


def alert(alert_id: str, **changes: Any) -> Alert:
    known: dict[str, Any] = {
        "id": alert_id, "run_id": "r1", "kind": "spike", "level": "critical", "state": "resolved", "step": 10,
        "title": f"title {alert_id}", "message": "", "opened_at": 100.0,
    }  # fmt: skip
    return Alert(**(known | changes))


ALERTS = (
    alert("forecast", kind="spike-predicted", level="warning", layers=("h.3.mlp",), opened_at=90.0),
    alert("spike", evidence={"prediction_id": "forecast"}),
    alert("open", state="open", level="watch", opened_at=50.0, run_id="r2"),
    alert("late", kind="nonfinite", opened_at=200.0, run_id="r2"),
)


def listed(**query: str) -> list[list[str]]:
    found = incidents(ALERTS, parse_alert_query("?" + urlencode(query)), RUNS)
    return [[item.id for item in members] for members in found]


def test_a_prediction_and_its_spike_are_one_incident_and_open_ones_come_first() -> None:
    assert listed() == [["open"], ["late"], ["forecast", "spike"]]


def test_a_spike_that_opened_before_it_settled_its_prediction_belongs_to_it() -> None:
    outcome = Outcome(result="hit", step=9, lead=3)
    foretold = alert("p", kind="spike-predicted", step=5, updated_step=12, outcome=outcome, opened_at=90.0)
    pair = (foretold, alert("s"), alert("t", step=30))
    found = incidents(pair, parse_alert_query(""), RUNS)
    assert {tuple(item.id for item in members) for members in found} == {("p", "s"), ("t",)}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"q": "WIDE"}, [["forecast", "spike"]]),
        ({"q": "h.3"}, [["forecast", "spike"]]),
        ({"q": "attic late"}, [["late"]]),
        ({"level": "warning"}, [["late"], ["forecast", "spike"]]),
        ({"state": "open"}, [["open"]]),
        ({"state": "settled"}, [["late"], ["forecast", "spike"]]),
        ({"kind": "spike"}, [["open"], ["forecast", "spike"]]),
        ({"project": "attic", "kind": "nonfinite"}, [["late"]]),
        ({"q": "nothing"}, []),
        ({"level": "nonsense", "state": "?"}, [["open"], ["late"], ["forecast", "spike"]]),
    ],
)
def test_filters_keep_whole_incidents(query: dict[str, str], found: list[list[str]]) -> None:
    assert listed(**query) == found


def test_what_followed_stands_below_what_opened_the_incident() -> None:
    drawn = rows(ALERTS, RUNS, 300.0, parse_alert_query("?q=wide"))
    assert len(drawn) == 1
    opening, followed = drawn[0].children
    assert "title forecast" in words(opening)
    assert "title spike" in words(followed)
    assert words(rows(ALERTS, RUNS, 300.0, parse_alert_query("?q=nothing"))[0]) == "No alert matches."
