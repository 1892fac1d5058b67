"""Rules that keep a sign of a build-up from becoming a warning, each beside the same sign that is one."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from server.detectors.detector_suite import DetectorSuite
from server.detectors.forecast import theoretical_growth
from server.detectors.signals import Reading
from server.detectors.spike_predictor import FALLING, OVERDUE, PART, SOON, Sign, judge
from server.models import Sample
from tests.support import streams

RATIO = 1.02
"""λ_max over its limit of the readings, at which a direction grows by 0.217 a step."""
SWINGING = Reading(
    step=500, loss=1e-2, grad_norm=1e-3, decoupling=1e-2, min_decoupling=1e-3, stability=RATIO, stability_peak=RATIO,
    mode_loss=1e-4, mode_growth=0.2, mode_alternation=1.0, mode_share=0.2, gradient_stability=0.2,
)  # fmt: skip
"""A direction at its limit that oscillates and grows, some ten steps before its spike."""
DIRECTIONAL = Reading(
    step=500, loss=1e-2, grad_norm=1e-3, growth=0.2, growth_fit=0.9, grad_ratio=4.0, decoupling=1e-2,
    min_decoupling=1e-3, stability=RATIO, stability_peak=RATIO, gradient_stability=1.02, gradient_above_count=3,
)  # fmt: skip
"""A gradient that climbs and has turned into the unstable direction."""
RISE = 1e-2
"""Rise of the loss that counts."""


def sign_of(reading: Reading) -> Sign:
    return judge(reading, rise=RISE).sign


def oscillating(*, held: float, loss: float = 1e-4, steps: int = 60, falling: bool = False) -> Iterator[Sample]:
    """Yield an oscillation that grows from step 36 on, while its directions hold `held` of the loss at the start."""
    for step in range(1, steps + 1):
        level = loss * (math.exp(-0.02 * step) if falling else 1.0)
        yield streams.sample(
            step, level, gradient=1e-3, decoupling=1e-4, lambda_max=202.0, lambda_grad=40.0,
            mode_loss=held * level * math.exp(0.2 * max(0, step - 36)), mode_growth=0.1 if step > 36 else 0.0,
            mode_alternation=1.0, mode_share=0.01,
        )  # fmt: skip


def first_warning(samples: Iterator[Sample]) -> int | None:
    opened = streams.first(streams.verdicts(samples), "spike-predicted", "warning", "critical")
    return None if opened is None else opened[0]


def test_a_spike_that_is_far_away_is_a_watch_until_its_date_is_near() -> None:
    """The growth from 2e-5 of the loss to a twentieth of it takes some 30 steps at first."""
    found = streams.verdicts(oscillating(held=2e-5))
    watch = streams.first(found, "spike-predicted")
    warning = streams.first(found, "spike-predicted", "warning", "critical")
    assert watch is not None
    assert warning is not None
    assert watch[1].level == "watch"
    assert watch[1].predicted_step is not None
    assert warning[1].predicted_step is not None
    assert watch[1].predicted_step.best - watch[0] > SOON >= warning[1].predicted_step.best - warning[0]
    assert first_warning(oscillating(held=1e-2)) == watch[0], "a near one is a warning at once"


def test_a_run_that_has_only_begun_and_whose_loss_still_falls_gets_a_watch() -> None:
    found = streams.verdicts(oscillating(held=1e-2, falling=True))
    assert streams.first(found, "spike-predicted", "warning", "critical") is None
    assert streams.first(found, "spike-predicted", "watch") is not None
    assert first_warning(oscillating(held=1e-2)) is not None, "the same with a loss that does not fall"
    late = (replace(item, step=item.step + FALLING) for item in oscillating(held=1e-2, falling=True))
    suite = DetectorSuite()
    calm = [
        streams.sample(step, 1e-4, gradient=1e-3, decoupling=1e-4, lambda_max=190.0, lambda_grad=40.0)
        for step in range(1, FALLING + 1)
    ]
    streams.verdicts(calm, suite)
    assert streams.first(streams.verdicts(late, suite), "spike-predicted", "warning", "critical") is not None


def test_an_oscillation_whose_gradient_v_has_caught_up_with_is_no_sign() -> None:
    assert sign_of(SWINGING) is Sign.OSCILLATION
    assert sign_of(replace(SWINGING, decoupling=0.9)) is Sign.OSCILLATION
    assert sign_of(replace(SWINGING, decoupling=1.0)) is not Sign.OSCILLATION


@pytest.mark.parametrize("ratio", [1.02, 1.1, 1.3])
def test_an_oscillation_must_grow_by_a_part_of_what_its_ratio_to_the_limit_implies(ratio: float) -> None:
    implied = theoretical_growth(ratio, 0.9)
    swinging = replace(SWINGING, stability=ratio, stability_peak=ratio)
    assert sign_of(replace(swinging, mode_growth=max(1.05 * PART * implied, 0.051))) is Sign.OSCILLATION
    if PART * implied > 0.06:
        assert sign_of(replace(swinging, mode_growth=0.95 * PART * implied)) is not Sign.OSCILLATION


def test_a_ratio_that_cannot_last_does_not_turn_the_gradient_into_a_direction() -> None:
    """Coordinates whose gradient vanished inflate λ_max; a real instability at ten times the limit ends in a step."""
    assert sign_of(DIRECTIONAL) is Sign.DIRECTIONAL
    huge = replace(DIRECTIONAL, stability=12.0, stability_peak=12.0, gradient_stability=12.0)
    assert sign_of(replace(huge, above_steps=OVERDUE)) is Sign.DIRECTIONAL
    assert sign_of(replace(huge, above_steps=OVERDUE + 1)) is not Sign.DIRECTIONAL
    assert sign_of(replace(DIRECTIONAL, above_steps=OVERDUE + 1)) is Sign.DIRECTIONAL, "a ratio that can last"
