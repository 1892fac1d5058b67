"""Tests of the rows and counts of the page of all runs."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from client_sdk.answers import Alert, LastAlert, Outcome, PredictedStep, RunSummary
from client_sdk.vocabulary import STAGE_REASONS, RunState, Stage
from dashboard.pages.alert_cards import column
from dashboard.pages.alerts import rows as alert_rows
from dashboard.pages.fleet import counts, dangers
from dashboard.pages.fleet_rows import risk, row
from tests.dashboard.test_alert_cards import alert, words

NOW = 1_000_000.0


def summary(**changes: object) -> RunSummary:
    known = {
        "id": "abc", "project": "demo", "name": "tanh-net", "state": "running", "last_step": 622, "step_rate": 18.4,
        "loss": 2.1e-14, "stage": "unstable", "stability_ratio": 1.118, "last_seen_at": NOW - 250,
    }  # fmt: skip
    return RunSummary(**(known | changes))  # type: ignore[arg-type]


def last(level: str = "warning", state: str = "open") -> LastAlert:
    return LastAlert(
        id="a", kind="spike-predicted", level=level, state=state, title="Spike predicted at step 646", step=5
    )


def test_a_row_reads_as_in_the_sketch() -> None:
    drawn = row(summary(predicted_step=PredictedStep(low=634, best=646, high=661), last_alert=last()), NOW)
    assert drawn["sub"] == "demo · 622 steps · 18.4/s"
    assert (drawn["stageWord"], drawn["ratioWord"], drawn["loss"]) == ("Unstable", "1.12", "2.1e-14")
    assert (drawn["spikeIn"], drawn["spikeTime"], drawn["spikeTone"]) == ("24 steps", "about 1.3 s", "danger")
    assert (drawn["alert"], drawn["alertTone"]) == ("Spike predicted at step 646", "danger")
    assert (drawn["state"], drawn["stateTone"]) == ("live", "ok")


def test_a_row_says_how_old_its_run_is_and_takes_a_name_that_tells_it_apart() -> None:
    drawn = row(summary(created_at=NOW - 3 * 3600), NOW, title="tanh-net · abc")
    assert drawn["sub"] == "demo · 622 steps · 18.4/s · 3 h old"
    assert drawn["name"] == "tanh-net · abc"
    assert row(summary(created_at=NOW - 20), NOW)["sub"].endswith("· new")


def test_each_endangered_run_has_a_line_above_the_table_and_calm_runs_have_none() -> None:
    runs = [summary(id=f"r{n}", name=f"run-{n}", step_rate=0.1) for n in range(8)]
    alerts = [alert(id=f"a{n}", run_id=f"r{n}", level="watch" if n == 0 else "warning") for n in range(8)]
    lines = dangers(runs, alerts)
    assert len(lines) == 6
    assert words(lines[0]) == (
        "run-1Spike in about 4 min (step 646, between 634 and 661), starting in 0.weight. Save a checkpoint now."
    )
    assert words(lines[-1]) == "and 2 more in the table"
    assert dangers([summary(state="finished", id="r1")], alerts) == []


def test_a_watch_is_approximate_and_quiet() -> None:
    drawn = row(summary(predicted_step=PredictedStep(low=800, best=932, high=990), last_alert=last("watch")), NOW)
    assert (drawn["spikeIn"], drawn["spikeTone"], drawn["alertTone"]) == ("~310 steps", "muted", "muted")


@pytest.mark.parametrize(
    ("stage", "state", "tone"),
    [
        (Stage.STABLE, RunState.RUNNING, "muted none"),
        (Stage.NOT_JUDGED, RunState.RUNNING, "muted not-judged"),
        (None, RunState.RUNNING, "muted not-judged"),
        (Stage.STABLE, RunState.FINISHED, "muted ended"),
    ],
)
def test_a_dash_says_why_no_spike_is_shown(stage: Stage | None, state: RunState, tone: str) -> None:
    assert row(summary(stage=stage, state=state), NOW)["spikeTone"] == tone


def test_states_are_truthful() -> None:
    assert row(summary(state="stale"), NOW)["state"] == "stale 4 min"
    assert row(summary(state="crashed"), NOW)["stateTone"] == "danger"
    finished = row(summary(state="finished", predicted_step=PredictedStep(low=1, best=9999, high=10000)), NOW)
    assert (finished["spikeIn"], finished["sub"]) == ("–", "demo · 622 steps")


@pytest.mark.parametrize(
    ("kind", "stage", "word"), [("nonfinite", "non-finite", "NaN"), ("divergence", "spiking", "diverged")]
)
@pytest.mark.parametrize("state", ["finished", "crashed"])
def test_a_run_that_ended_in_trouble_is_marked(kind: str, stage: str, word: str, state: str) -> None:
    ended = LastAlert(id="a", kind=kind, level="critical", state="ended", title="It stayed.", step=5)
    drawn = row(summary(state=state, stage=stage, loss=None, ended_with=ended, last_alert=ended), NOW)
    assert (drawn["state"], drawn["stateTone"]) == (f"{state}: {word}", "danger")
    assert (drawn["alert"], drawn["alertTone"]) == ("It stayed.", "danger")
    assert (drawn["loss"] == "NaN") is (kind == "nonfinite")


def test_now_is_said_while_spiking_and_when_the_date_has_come() -> None:
    assert row(summary(stage="spiking"), NOW)["spikeIn"] == "now"
    assert row(summary(predicted_step=PredictedStep(low=600, best=610, high=640)), NOW)["spikeIn"] == "now"


def test_a_run_without_anything_yet_is_a_row_of_dashes() -> None:
    drawn = row(RunSummary(id="0123456789abcdef"), NOW)
    assert drawn["name"] == "01234567"
    assert {drawn[key] for key in ("stageWord", "ratioWord", "spikeIn", "loss", "alert")} == {"–"}
    assert drawn["sub"] == "no steps yet"
    assert drawn["ratio"] is None


def test_a_settled_prediction_says_what_came() -> None:
    alert = Alert(
        id="a", run_id="abc", kind="spike-predicted", level="warning", state="resolved", step=5,
        title="", message="",
        predicted_step=PredictedStep(low=12_800, best=12_880, high=12_900),
        outcome=Outcome(result="hit", step=12_871, lead=9),
    )  # fmt: skip
    drawn = row(summary(last_alert=last(state="resolved")), NOW, {"a": alert})
    assert drawn["alert"] == "hit: predicted 12,880, came 12,871"
    assert drawn["alertTone"] == "muted"


def test_values_that_are_not_finite_are_said_in_red() -> None:
    drawn = row(summary(loss=math.inf, stability_ratio=math.nan), NOW)
    assert (drawn["loss"], drawn["lossTone"], drawn["ratio"]) == ("∞", "danger", None)


def test_risk_puts_the_spiking_first_and_the_dead_last() -> None:
    spiking = summary(stage="spiking")
    soon = summary(predicted_step=PredictedStep(low=634, best=646, high=661))
    later = summary(predicted_step=PredictedStep(low=900, best=1000, high=1100))
    near, calm = summary(stability_ratio=0.93), summary(stability_ratio=0.2)
    crashed, finished = summary(state="crashed"), summary(state="finished")
    ordered = [spiking, soon, later, near, calm, crashed, finished]
    assert sorted(ordered, key=risk, reverse=True) == ordered


def test_addresses_of_runs_are_escaped() -> None:
    assert row(summary(id="a/b?c#d"), NOW)["href"] == "/runs/a%2Fb%3Fc%23d"


def test_counts_tell_how_often_predictions_came_true() -> None:
    def settled(result: Literal["hit", "late", "false"]) -> Alert:
        return Alert(id=result, run_id="abc", kind="spike-predicted", level="warning", state="resolved", step=5,
                     title="", message="", outcome=Outcome(result=result, step=None, lead=None))  # fmt: skip

    shown = counts(
        [summary(stage="spiking"), summary(state="finished")], [settled("hit"), settled("late"), settled("false")]
    )
    numbers = [component.children[0].children for component in shown]
    assert numbers == ["1", "1", "2 of 3"]


def test_a_run_without_evidence_is_never_shown_as_stable() -> None:
    run = summary(stage="not-judged", stage_reason="loss-only", loss_name="train/loss", stability_ratio=None)
    drawn = row(run, NOW)
    assert (drawn["stage"], drawn["stageWord"]) == ("not-judged", "Not judged")
    assert drawn["stageReason"] == STAGE_REASONS["loss-only"]
    card = str(column([], "running", NOW, not_judged=run.reason_words))
    assert STAGE_REASONS["loss-only"] in card
    assert "Nothing to worry about" not in card
    assert "no run could be judged" in str(alert_rows([], {run.id: run}, NOW))
    assert "No alerts yet." in str(alert_rows([], {run.id: summary(stage="stable")}, NOW))
