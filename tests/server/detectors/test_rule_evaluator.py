"""Alert rules hold when they should, and obey the laws of the detectors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from client_sdk.vocabulary import ChangeBy, Condition, Direction, Reduce
from server.detectors.rule_evaluator import RuleEvaluator
from server.models import Finding, Layout, Sample
from server.rule import Rule
from tests.support import streams

LOSS: dict[str, Any] = {"id": "r", "name": "A rule", "condition": Condition.ABOVE, "value": 2.0, "scalar": "loss"}
ALL_KINDS = (
    Rule(id="above", name="Above", condition=Condition.ABOVE, value=1.2, scalar="loss", for_steps=2),
    Rule(id="below", name="Below", condition=Condition.BELOW, value=0.5, statistic="grad_norm", reduce=Reduce.MIN),
    Rule(
        id="change", name="Change", condition=Condition.CHANGE, value=1.5, scalar="loss", window=30,
        direction=Direction.EITHER,
    ),
    Rule(
        id="amount", name="Amount", condition=Condition.CHANGE, change_by=ChangeBy.AMOUNT, value=0.2,
        statistic="v_rms", reduce=Reduce.MEAN, window=500,
    ),
    Rule(
        id="z", name="Unusual", condition=Condition.Z_SCORE, value=5.0, statistic="grad_norm", layers="2.*",
        window=40, direction=Direction.EITHER, cooldown_minutes=0.5,
    ),
    Rule(id="silent", name="Silent", condition=Condition.NO_DATA, value=10.0),
)  # fmt: skip


def evaluator_of(*rules: Rule) -> RuleEvaluator:
    evaluator = RuleEvaluator()
    evaluator.replace_rules(rules, "1")
    return evaluator


def scalars(values: Iterable[float], name: str = "loss", every: int = 1) -> list[Sample]:
    return [Sample(step=every * i, time=1000.0 + i, scalars={name: x}) for i, x in enumerate(values)]


def held(evaluator: RuleEvaluator, samples: Iterable[Sample]) -> list[tuple[Finding, ...]]:
    return [evaluator.update(sample, sample.time).findings for sample in samples]


def steps_held(rule: Rule, values: Sequence[float], every: int = 1) -> list[int]:
    samples = scalars(values, every=every)
    found = held(evaluator_of(rule), samples)
    return [sample.step for sample, findings in zip(samples, found, strict=True) if findings]


@pytest.mark.parametrize(
    ("fields", "values", "expected"),
    [
        ({}, [1, 3, 1, 3, 3], [1, 3, 4]),
        ({"condition": Condition.BELOW}, [1, 3, 1], [0, 2]),
        ({"for_steps": 2}, [3, 1, 3, 3, 1, 3, 1, 1, 3], [3, 4, 5, 6]),
        ({"value": 5.0}, [1, math.inf, math.nan, 1], [1, 2]),
        ({"condition": Condition.CHANGE, "value": 2.0, "window": 2}, [1, 1, 1.9, 2, 2, 4], [3, 5]),
        ({"condition": Condition.CHANGE, "value": 2.0, "window": 2}, [-1, -1, -9, 0, 0, 9], []),
        (
            {"condition": Condition.CHANGE, "change_by": ChangeBy.AMOUNT, "value": 3, "window": 1, "direction": "down"},
            [9, 6, 5, 1, 9],
            [1, 3],
        ),
    ],
    ids=["above", "below", "in a row", "infinite, then NaN", "factor", "factor of no positive", "falls by an amount"],
)
def test_a_condition_holds_at_exactly_these_steps(
    fields: dict[str, Any], values: list[float], expected: list[int]
) -> None:
    chosen = {**LOSS, "cooldown_minutes": 0.0, **fields}
    chosen["direction"] = Direction(chosen.get("direction", "up"))
    assert steps_held(Rule(**chosen), values) == expected


def test_a_change_over_a_long_window_is_seen_to_within_a_hundredth() -> None:
    rule = Rule(**{**LOSS, "condition": Condition.CHANGE, "value": 2.0, "window": 10_000})
    begun = steps_held(rule, [2 ** (step / 10_000) for step in range(0, 40_000, 10)], every=10)[0]
    assert 10_000 <= begun <= 10_150


def test_an_outlier_is_unusual_and_noise_is_not() -> None:
    noise = np.random.default_rng(0)
    values = list(1.0 + 0.05 * noise.standard_normal(2_000))
    rule = Rule(**{**LOSS, "condition": Condition.Z_SCORE, "value": 6.0, "window": 100, "direction": Direction.EITHER})
    assert steps_held(rule, values) == []
    values[1_500] = 1.6
    assert steps_held(rule, values) == [1_500]


@pytest.mark.parametrize(("reduce", "expected"), [(Reduce.MAX, 5.0), (Reduce.MIN, 1.0), (Reduce.MEAN, 3.0)])
def test_layers_are_chosen_by_name_and_reduced(reduce: Reduce, expected: float) -> None:
    layout = Layout(id=0, layers=("a.weight", "b.weight", "c.weight", "b.bias"), statistics=("x", "grad_norm"))
    block = np.array([[0, 1], [0, 5], [0, math.nan], [0, 99]], dtype=np.float32)
    rule = Rule(
        id="r", name="A rule", condition=Condition.ABOVE, value=0.5, statistic="grad_norm", layers="*.weight",
        reduce=reduce,
    )  # fmt: skip
    (finding,) = evaluator_of(rule).update(Sample(step=1, time=0, scalars={}, layout=layout, block=block), 0.0).findings
    assert finding.evidence["value"] == expected
    leading = {Reduce.MAX: ("b.weight", "a.weight"), Reduce.MIN: ("a.weight", "b.weight"), Reduce.MEAN: ()}
    assert finding.layers == leading[reduce]


def test_cooldown_bounds_the_alerts_and_not_the_condition() -> None:
    rule = Rule(**{**LOSS, "cooldown_minutes": 1.0})
    assert steps_held(rule, [3, 1, 3, 1, *[3] * 70])[:3] == [0, 60, 61]


def test_silence_is_reported_once_and_ends_with_the_first_record() -> None:
    evaluator = evaluator_of(ALL_KINDS[-1])
    assert evaluator.find_silent(10_000.0) == ()
    held(evaluator, scalars([1.0] * 10))
    assert evaluator.due_at == 1009.0 + 600.0
    assert evaluator.find_silent(1608.0) == ()
    assert evaluator.find_silent(1700.0, since=1500.0) == ()
    (finding,) = evaluator.find_silent(1609.0)
    assert "10 minutes" in finding.message
    assert evaluator.find_silent(9_999.0) == ()
    assert evaluator.due_at is None
    result = evaluator.update(Sample(step=10, time=0.0, scalars={}), 2_000.0)
    assert result.findings == ()
    assert result.returned == (("silent", 991.0),)


def test_a_run_that_logs_every_quarter_of_an_hour_is_not_silent() -> None:
    evaluator = evaluator_of(ALL_KINDS[-1])
    samples = [Sample(step=i, time=900.0 * i, scalars={}) for i in range(20)]
    held(evaluator, samples)
    assert evaluator.due_at is not None
    assert evaluator.due_at > 19 * 900.0 + 40 * 60


def test_only_what_is_watched_ends_its_silence() -> None:
    evaluator = evaluator_of(
        Rule(id="val", name="No evaluation", condition=Condition.NO_DATA, value=1.0, scalar="val_loss")
    )
    evaluator.update(Sample(step=0, time=0.0, scalars={"val_loss": math.nan}), 0.0)
    held(evaluator, [Sample(step=i, time=float(i), scalars={"loss": 1.0}) for i in range(1, 100)])
    assert evaluator.due_at == 60.0


@pytest.mark.parametrize("cut", [1, 50, 399])
def test_restored_evaluator_goes_on_exactly_where_it_stood(cut: int) -> None:
    samples = list(streams.spoiled(streams.healthy(400, seed=2), seed=3))
    whole = evaluator_of(*ALL_KINDS)
    expected = held(whole, samples)
    before = evaluator_of(*ALL_KINDS)
    found = held(before, samples[:cut])
    after = RuleEvaluator.restore(before.snapshot())
    found += held(after, samples[cut:])
    assert repr(found) == repr(expected)
    assert after.snapshot() == whole.snapshot()
    assert any(expected), "the stream must set the rules off, or it proves nothing"


def test_a_constant_stream_sets_off_no_change_and_no_deviation() -> None:
    assert not any(held(evaluator_of(*ALL_KINDS[2:]), streams.constant(600)))


@pytest.mark.parametrize("seed", range(3))
def test_nan_and_infinity_never_raise(seed: int) -> None:
    assert len(held(evaluator_of(*ALL_KINDS), streams.spoiled(streams.healthy(300, seed), seed))) == 300


def test_a_new_attempt_forgets_the_values_of_the_other() -> None:
    rule = Rule(**{**LOSS, "condition": Condition.CHANGE, "value": 2.0, "window": 5})
    evaluator = evaluator_of(rule)
    held(evaluator, scalars([1.0] * 20))
    again = [msgspec.structs.replace(sample, attempt=1) for sample in scalars([9.0] * 20)]
    assert not any(held(evaluator, again))


def test_replacing_rules_keeps_what_did_not_change_and_ends_what_did() -> None:
    kept, changed, gone = (Rule(**{**LOSS, "id": name}) for name in ("kept", "changed", "gone"))
    evaluator = evaluator_of(kept, changed, gone)
    held(evaluator, scalars([3.0]))
    ended = evaluator.replace_rules((kept, dataclasses.replace(changed, value=9.0)), "2")
    assert set(ended) == {"changed", "gone"}
    assert [finding.key for finding in evaluator.findings()] == ["kept"]


def test_snapshot_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 9"):
        RuleEvaluator.restore(evaluator_of(*ALL_KINDS).snapshot().replace(b"\xa7version\x01", b"\xa7version\x09"))
    with pytest.raises(ValueError):  # noqa: PT011 - msgspec words the message, but it must be a ValueError
        RuleEvaluator.restore(b"nothing of ours")


def test_the_state_is_small_however_many_layers_there_are() -> None:
    layout = Layout(id=0, layers=tuple(f"l{i}" for i in range(5_000)), statistics=("grad_norm", "v_rms"))
    evaluator = evaluator_of(*ALL_KINDS)
    noise = np.random.default_rng(0)
    for step in range(700):
        block = noise.random((5_000, 2), dtype=np.float32)
        evaluator.update(Sample(step=step, time=step, scalars={"loss": 1.0}, layout=layout, block=block), step)
    assert len(evaluator.snapshot()) < 10_000
