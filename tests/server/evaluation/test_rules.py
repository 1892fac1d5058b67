"""The plain rules of other programs: where each fires, and that none sees the future."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.evaluation.recordings import read_recordings
from server.evaluation.rules.registry import RULES
from server.evaluation.rules.rule import PlainRule
from server.evaluation.signal_series import Array, SignalSeries, series_of

DATA = Path(__file__).parents[2] / "data"
QUIET = 0.01
"""Relative noise of the synthetic signals."""


def series(**signals: Array) -> SignalSeries:
    steps = len(next(iter(signals.values()))) if signals else 300
    noise = np.random.default_rng(0)
    usual: dict[str, Array] = {
        "loss": 1 + QUIET * noise.standard_normal(steps),
        "grad_norm": 1 + QUIET * noise.standard_normal(steps),
        "rms_ratio": np.ones(steps),
        "decoupling": np.ones(steps),
        "lambda_max": np.full(steps, 0.5),
        "lambda_grad": np.full(steps, 0.2),
    }
    return SignalSeries(**{**usual, **signals})


def rule(name: str) -> PlainRule:
    return next(one for one in RULES if one.name == name)


def first(name: str, found: SignalSeries) -> int | None:
    fires = rule(name).fires(found)
    return int(np.argmax(fires)) if fires.any() else None


def jump(height: float, length: int = 8, base: float = 1.0) -> Array:
    """Return a signal that is `height` from sample 200 on, and `base` with a little noise at all others."""
    signal = base * series().loss
    signal[200 : 200 + length] = height
    return signal


@pytest.mark.parametrize(
    ("name", "signals", "expected"),
    [
        ("OLMo-core skip step", {"loss": jump(1.1)}, 200),
        ("OLMo-core skip step", {"grad_norm": jump(1.1)}, 200),
        ("OLMo 2 spike score", {"loss": jump(1.1)}, 200),
        ("Lightning SpikeDetection", {"loss": jump(3.2)}, 200),
        ("Lightning SpikeDetection", {"loss": jump(2.8)}, None),
        ("llm-foundry KillLossSpike", {"loss": jump(2.5)}, 204),
        ("llm-foundry KillLossSpike", {"loss": jump(2.5, length=4)}, None),
        ("Megatron-LM spiky loss", {"loss": jump(10.5)}, 200),
        ("Megatron-LM spiky loss", {"loss": jump(9.0)}, None),
        ("trainpulse", {"loss": jump(5.5)}, 200),
        ("trainpulse", {"loss": jump(4.5)}, None),
        ("trainpulse", {"grad_norm": jump(101.0)}, 200),
        ("gradient norm", {"grad_norm": jump(3.5)}, 200),
        ("gradient norm", {"grad_norm": jump(2.5)}, None),
        ("Wortsman RMS_t", {"rms_ratio": jump(2.4)}, 200),
        ("bare λ_max", {"lambda_max": jump(1.1, length=50, base=0.5)}, 209),
        ("bare λ_max", {"lambda_max": jump(1.1, length=9, base=0.5)}, None),
        ("bare λ_grad", {"lambda_grad": jump(1.1, base=0.5)}, 200),
    ],
)
def test_a_rule_fires_where_its_source_says(name: str, signals: dict[str, Array], expected: int | None) -> None:
    assert first(name, series(**signals)) == expected


@pytest.mark.parametrize(("name", "signal"), [("W&B z-score", "loss"), ("ZClip", "grad_norm")])
def test_rules_of_few_deviations_fire_on_small_jumps_and_now_and_then_on_noise(name: str, signal: str) -> None:
    fires = rule(name).fires(series(**{signal: jump(1.1)}))
    assert fires[200]
    noise = 1 + QUIET * np.random.default_rng(1).standard_normal(3_000)
    assert 0 < rule(name).fires(series(**{signal: noise})).mean() < 0.03


def growing(rate: float = 0.1) -> Array:
    """Return a gradient norm that grows from sample 200 on."""
    return np.exp(rate * np.maximum(np.arange(300) - 200, 0))


def test_the_combination_wants_growth_and_a_decoupled_second_moment() -> None:
    decoupled = np.where(np.arange(300) >= 150, 0.01, 1.0)
    found = first("combination without", series(grad_norm=growing(), decoupling=decoupled))
    assert found is not None
    assert 200 < found < 215
    assert first("combination without", series(grad_norm=growing())) is None
    assert first("combination without", series(decoupling=decoupled)) is None


def test_the_combination_with_curvature_also_wants_the_limit_near() -> None:
    decoupled = np.where(np.arange(300) >= 150, 0.01, 1.0)
    growth = {"grad_norm": growing(), "decoupling": decoupled}
    assert first("combination with curvature", series(**growth)) is None
    near = first("combination with curvature", series(**growth, lambda_max=np.full(300, 0.95)))
    assert near == first("combination without", series(**growth))
    directed = first("combination with curvature", series(**growth, lambda_grad=np.full(300, 1.1)))
    assert directed is not None
    assert near is not None
    assert directed <= near


@pytest.mark.parametrize("one", RULES, ids=lambda one: one.name)
def test_no_rule_sees_the_future(one: PlainRule) -> None:
    for recording in read_recordings(DATA):
        whole = one.fires(series_of(recording))
        for end in (1, 30, len(recording.samples) // 2):
            part = one.fires(series_of(replace(recording, samples=recording.samples[:end])))
            assert part.tolist() == whole[:end].tolist()


@pytest.mark.parametrize("one", RULES, ids=lambda one: one.name)
def test_a_rule_stands_missing_and_broken_signals(one: PlainRule) -> None:
    missing = np.full(300, np.nan)
    bare = series(grad_norm=missing, rms_ratio=missing, decoupling=missing, lambda_max=missing, lambda_grad=missing)
    assert one.fires(bare).shape == (300,)
    broken = series(loss=np.full(300, np.inf), grad_norm=np.full(300, np.inf))
    assert one.fires(broken).dtype == np.bool_


def test_rules_that_need_curvature_are_silent_without_it() -> None:
    for recording in read_recordings(DATA):
        bare = series_of(recording.without_curvature())
        for name in ("bare λ_max", "bare λ_grad"):
            assert rule(name).needs_curvature
            assert not rule(name).fires(bare).any()


def test_every_rule_names_its_source() -> None:
    assert len({one.name for one in RULES}) == len(RULES)
    assert all(one.source for one in RULES)
