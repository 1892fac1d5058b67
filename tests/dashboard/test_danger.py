"""Tests of the sentence on top of an endangered run, and of the code of the fix."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from client_sdk.answers import Outcome, RunDetail
from client_sdk.protocol import Optimizer
from client_sdk.vocabulary import Cause
from dashboard.pages.alert_cards import tone
from dashboard.pages.danger import banner, danger_tone, endangering, sentence
from dashboard.pages.fix import fix_code
from tests.dashboard.test_alert_cards import NOW, alert, words


def run(**changes: Any) -> RunDetail:
    known: dict[str, Any] = {
        "id": "r", "name": "wide", "project": "p", "state": "running", "last_step": 622, "step_rate": 0.1,
        "optimizer": Optimizer(name="AdamW", family="adam", lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8),
    }  # fmt: skip
    return RunDetail(**(known | changes))


def test_the_sentence_says_when_where_and_what_to_do() -> None:
    assert sentence(alert(), run()) == (
        "Spike in about 4 min (step 646, between 634 and 661), starting in 0.weight. Save a checkpoint now."
    )
    assert sentence(alert(), run(step_rate=None)).startswith("Spike in about 24 steps (step 646")
    assert sentence(alert(), run(state="stale")).startswith("Spike in about 24 steps"), "a rate of the past is no clock"
    assert sentence(alert(), run(last_step=650)).startswith("Spike due now (step 646, between 634 and 661)")
    assert sentence(alert(predicted_step=None, layers=()), run()) == "A spike is building up. Save a checkpoint now."
    other = alert(kind="nonfinite", title="Loss is NaN at step 700", layers=(), advice=())
    assert sentence(other, run()) == "Loss is NaN at step 700."


def test_the_colour_follows_the_time_that_is_left_and_a_prediction_that_did_not_come_is_calm() -> None:
    assert danger_tone(alert(), run()) == "danger"
    assert danger_tone(alert(), run(step_rate=0.001)) == "warn", "three hours are left"
    assert danger_tone(alert(), run(step_rate=0.001, state="stale")) == "danger"
    assert danger_tone(alert(kind="spike"), run(step_rate=0.001)) == "danger"
    false = Outcome(result="false", step=None, lead=None)
    assert [tone(alert()), tone(alert(state="resolved", outcome=false))] == ["danger", "calm"]


def test_a_layer_with_a_name_that_would_fill_the_sentence_is_left_to_the_card() -> None:
    assert ", starting in" not in sentence(alert(layers=("model." * 20 + "weight",)), run())


def test_only_an_open_alert_of_warning_or_above_endangers_a_running_run() -> None:
    watch, grave = alert(id="w", level="watch", step=600), alert(id="g", level="critical")
    assert endangering([watch, grave], "running") is grave
    assert endangering([watch], "running") is None
    assert endangering([alert(state="resolved")], "running") is None
    assert endangering([grave], "finished") is None


def test_the_banner_has_the_buttons_and_the_code_to_copy() -> None:
    text = words(banner(alert(), run(), NOW))
    assert all(word in text for word in ("Acknowledge", "Silence 1 h", "Copy fix", 'group["betas"]'))
    assert "Copy fix" not in words(banner(alert(cause=""), run(), NOW))


@pytest.mark.parametrize("cause", list(Cause))
def test_the_code_of_every_fix_is_python_and_begins_with_a_checkpoint(cause: Cause) -> None:
    code = fix_code(alert(cause=cause.value), run())
    ast.parse(code)
    assert code.splitlines()[0] == f"# Spikewatch, step 497: {cause.value.replace('-', ' ')} in wide"
    assert code.splitlines()[1].startswith("torch.save(")
    assert "torch.save" not in fix_code(alert(cause=cause.value, kind="spike"), run())


def test_the_code_of_a_fix_follows_the_optimizer() -> None:
    assert "0.99)" in fix_code(alert(), run())
    assert '"lr"] *= 0.5' in fix_code(alert(), run(optimizer=None))
    assert '"eps"] = 1e-12' in fix_code(alert(cause="vanished-gradients"), run())


def test_the_name_of_a_run_never_becomes_code() -> None:
    code = fix_code(alert(), run(name="wide\nimport os\r\x0cos.abort()"))
    assert code.splitlines()[0].endswith("in wide import os os.abort()")
    assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import)]
