"""Tests of rules as sentences and as forms, and of the figure of a backtest."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from client_sdk.answers import Firing, Outline, Rule, RunBacktest, RunSummary
from dashboard.figures.rule_backtest import rule_backtest_figure
from dashboard.forms.fields import FieldError
from dashboard.pages.rule_form import body, editor, slug
from dashboard.pages.rules import items, layout, sentence
from dashboard.shell.page import PageRequest
from dashboard.viewer import Viewer

LOSS = Rule(id="r", name="Loss is high", condition="above", value=10.0, scalar="loss")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "loss above 10 · all runs"),
        ({"for_steps": 3, "project": "gpt"}, "loss above 10, 3 values in a row · project gpt"),
        (
            {"condition": "change", "value": 2.0, "direction": "down", "tag": "prod", "run_name": "a-*"},
            "loss falls by 2× over 100 steps · tag prod, a-*",
        ),
        (
            {"condition": "z-score", "value": 6.0, "direction": "either", "scalar": None, "statistic": "grad_norm"},
            "greatest grad_norm of all layers 6 deviations off its last 100 values · all runs",
        ),
        ({"condition": "no-data", "scalar": None}, "any record missing for 10 min · all runs"),
    ],
)
def test_a_rule_reads_as_a_sentence(fields: dict[str, Any], said: str) -> None:
    assert sentence(msgspec.structs.replace(LOSS, **fields)) == said


def filled(rule: Rule, **changes: str) -> dict[str, str]:
    """Return the fields of the form of a rule as a browser sends them."""
    found: dict[str, str] = {}

    def walk(part: Any) -> None:
        if getattr(part, "name", None):
            options = [child for child in getattr(part, "children", None) or [] if hasattr(child, "selected")]
            chosen = [option.value for option in options if option.selected]
            found[part.name] = (chosen or [options[0].value])[0] if options else str(part.value)
        children = getattr(part, "children", None)
        for child in children if isinstance(children, list | tuple) else [children]:
            if child is not None and not isinstance(child, str):
                walk(child)

    walk(editor(rule, [RunSummary(id="x", project="p")]))
    return found | changes


@pytest.mark.parametrize(
    "rule",
    [
        LOSS,
        Rule(id="a", name="A", condition="change", value=2.5, statistic="grad_norm", layers="b.*", reduce="min",
             change_by="amount", direction="down", window=7, for_steps=4, tag="t"),
        Rule(id="b", name="B", condition="z-score", value=6, scalar="lr", window=50, level="critical", enabled=False),
        Rule(id="c", name="C", condition="no-data", value=15, project="p", cooldown_minutes=0),
    ],
    ids=lambda rule: rule.id,
)  # fmt: skip
def test_an_unchanged_form_gives_the_rule_back(rule: Rule) -> None:
    assert msgspec.convert(body(filled(rule), rule, []), Rule) == rule


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("name", {"name": " "}),
        ("value", {"value": "much"}),
        ("value", {"value": "inf"}),
        ("scalar", {"scalar": ""}),
        ("statistic", {"watches": "layers"}),
        ("watches", {"watches": "anything"}),
        ("for_steps", {"for_steps": "1.5"}),
    ],
)
def test_an_invalid_value_is_reported_at_its_field(field: str, changes: dict[str, str]) -> None:
    with pytest.raises(FieldError) as caught:
        body(filled(LOSS, **changes), None, [])
    assert caught.value.field == field


def test_viewers_who_may_not_change_rules_see_no_buttons() -> None:
    assert "edit-rule" in str(items([LOSS]))
    shown = str(items([LOSS], may_change=False)) + str(
        layout(PageRequest(viewer=Viewer(credential="x", scope="write")))
    )
    assert "Loss is high" in shown
    assert "data-verb" not in shown
    for viewer, may in (
        (Viewer(), True),
        (Viewer(credential="x", scope="admin"), True),
        (Viewer(credential="x", scope="admin", project="p"), False),
        (Viewer(credential="x", scope="write"), False),
    ):
        assert viewer.is_administrator is may


def test_a_new_rule_gets_an_id_of_its_own() -> None:
    assert slug("Größe der Loss > 5!", []) == "gr-e-der-loss-5"
    assert slug("Loss", ["loss", "loss-2"]) == "loss-3"
    assert slug("λ", []) == "rule"


def test_a_backtest_is_drawn_with_its_threshold_and_the_steps_that_fire() -> None:
    run = RunBacktest(
        run_id="r", name="n", chosen=True, fired=1, firings=(Firing(step=4, value=12.0),), values=8, last_step=9,
        complete=True, series=Outline(bucket_steps=2, step=(0, 2, 4, 6), min=(1, 1, 1, 1), max=(1, 2, 12, 1)),
    )  # fmt: skip
    drawn = rule_backtest_figure(run, {"condition": "above", "value": 10.0}, "light", narrow=False).to_dict()
    assert [list(trace["x"]) for trace in drawn["data"] if trace["mode"] == "markers"] == [[4]]
    assert [shape.get("y0") for shape in drawn["layout"]["shapes"]] == [0, 10.0]
    assert drawn["layout"]["annotations"][0]["text"] == "above 10"
    low, high = drawn["layout"]["yaxis"]["range"]
    assert low < 1
    assert high > 12
