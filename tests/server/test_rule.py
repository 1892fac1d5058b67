"""Alert rules: checks of their fields, and the runs that they apply to."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from client_sdk.vocabulary import Condition, Reduce
from server.errors import RuleFieldError
from server.models import AlertLevel
from server.rule import Rule, RuleSet


def rule(**fields: Any) -> Rule:
    values = {"id": "r", "name": "A rule", "condition": Condition.ABOVE, "value": 1.0, "scalar": "loss", **fields}
    return Rule(**values)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("id", {"id": "No Spaces"}),
        ("id", {"id": "-"}),
        ("name", {"name": "  "}),
        ("value", {"value": float("nan")}),
        ("value", {"condition": Condition.CHANGE, "value": 1.0}),
        ("value", {"condition": Condition.Z_SCORE, "value": 0.5}),
        ("value", {"condition": Condition.NO_DATA, "value": 0.0}),
        ("window", {"condition": Condition.Z_SCORE, "value": 6, "window": 5}),
        ("window", {"condition": Condition.CHANGE, "value": 2, "window": 0}),
        ("scalar", {"scalar": None}),
        ("statistic", {"statistic": "grad_norm"}),
        ("layers", {"layers": ""}),
        ("name", {"name": "two\nlines"}),
        ("project", {"project": "a\x00b"}),
        ("for_steps", {"for_steps": 0}),
        ("cooldown_minutes", {"cooldown_minutes": -1.0}),
    ],
)
def test_the_error_names_the_field(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(RuleFieldError) as caught:
        rule(**fields)
    assert caught.value.field == field


def test_json_round_trips() -> None:
    one = rule(
        statistic="grad_norm", scalar=None, layers="blocks.*", reduce=Reduce.MIN, tag="prod", level=AlertLevel.CRITICAL
    )
    assert Rule.from_json(msgspec.json.decode(msgspec.json.encode(one.to_json()))) == one
    assert Rule.from_json({"id": "r", "name": "A rule", "condition": "above", "value": 1, "scalar": "loss"}) == rule()
    with pytest.raises(msgspec.ValidationError):
        Rule.from_json({"id": "r"})


def test_a_rule_is_for_the_runs_of_its_project_tag_and_name() -> None:
    one = rule(project="gpt", tag="prod", run_name="big-*")
    assert one.applies_to("gpt", "big-7", ("prod", "x"))
    assert not one.applies_to("gpt", "small", ("prod",))
    assert not one.applies_to("gpt", "big-7", ())
    assert not one.applies_to("other", "big-7", ("prod",))
    rules = RuleSet(rules=(one, rule(id="off", enabled=False), rule(id="all")))
    assert [found.id for found in rules.of_run("x", "y", ())] == ["all"]


def test_equal_rules_have_equal_versions() -> None:
    assert RuleSet(rules=(rule(),)).version == RuleSet(rules=(rule(),)).version
    assert RuleSet(rules=(rule(),)).version != RuleSet(rules=(rule(value=2.0),)).version
