"""Tests of the replay section of a run's page."""

from __future__ import annotations

import json
from typing import Any

import pytest
from plotly.utils import PlotlyJSONEncoder

from client_sdk.answers import Replay, Told
from client_sdk.protocol import PredictedStep
from dashboard.pages.replay import SHOWN, result, section


def text_of(component: Any) -> str:
    """Return all text of components, in order."""
    if component is None:
        return ""
    if isinstance(component, str):
        return component
    if isinstance(component, list | tuple):
        return " ".join(filter(None, map(text_of, component)))
    return text_of(getattr(component, "children", None))


def told(step: int = 600, **fields: Any) -> Told:
    return Told(**{"step": step, "kind": "spike-predicted", "level": "warning", "title": "Spike predicted", **fields})


def replayed(*would: Told, **fields: Any) -> Replay:
    values = {"run_id": "r", "sensitivity": "usual", "told": (), "records": 800, "last_step": 800, **fields}
    return Replay(**{"would": would, "would_count": len(would), **values})


def test_both_lists_have_the_steps_the_warning_the_forecast_and_the_outcome() -> None:
    one = told(warned_at_step=620, predicted_step=PredictedStep(low=690, best=710, high=760), result="hit")
    text = text_of(result(replayed(one, told=(told(640, level="watch", cause="stale-second-moment"),))))
    assert "800 records up to step 800: one alert, 1 at level warning or above." in text
    assert "step 600 warning · Spike predicted warning at step 620 · forecast 690 to 760 · hit" in text
    assert "step 640 watch · Spike predicted stale second moment" in text


def test_a_replay_that_changes_nothing_says_so() -> None:
    assert "The same was told." in text_of(result(replayed(told(), told=(told(),))))
    assert "The same was told." not in text_of(result(replayed(told(), told=(told(700),))))


@pytest.mark.parametrize(
    ("replay", "expected"),
    [
        (replayed(), "no alert."),
        (replayed(told(), complete=False, last_step=500), "The time limit was reached at step 500"),
        (replayed(*(told(step) for step in range(SHOWN + 5))), "and 5 more"),
        (replayed(told(), would_count=300), "and 299 more"),
    ],
    ids=["nothing", "unfinished", "many", "left out"],
)
def test_what_is_missing_is_said(replay: Replay, expected: str) -> None:
    assert expected in text_of(result(replay))


def test_the_section_has_one_knob_and_names_its_run() -> None:
    drawn = json.dumps(section("run-7"), cls=PlotlyJSONEncoder)
    assert drawn.count('"Select"') == 1
    assert '"data-subject": "run-7"' in drawn
    assert all(word in drawn for word in ("fewer alerts", "the usual", "more alerts"))
