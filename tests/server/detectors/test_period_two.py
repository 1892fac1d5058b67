"""The period-two component of the gradient: its share, the height and the date that follow from its growth."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from msgspec.structs import replace

from client_sdk.optimizers import GradientResponse
from client_sdk.stats.period_two_reading import DECAY, WINDOW
from server.detectors import period_two
from server.detectors.detector_suite import DetectorSuite
from server.detectors.height import HeightRecord
from server.detectors.period_two import PeriodTwo, full_share, peak_decoupling, stability_ratio
from server.detectors.signals import Reading
from server.models import Sample
from tests.support import streams


@pytest.mark.parametrize("growth", [0.0, 0.1, 0.5, 1.5])
def test_full_share_is_that_of_a_gradient_that_only_alternates(growth: float) -> None:
    component = level = 0.0
    for step in range(60):
        gradient = (-math.exp(growth)) ** step
        component = -DECAY * component + (1 - DECAY) * gradient
        level = DECAY * level + (1 - DECAY) * gradient**2
    assert full_share(growth) == pytest.approx(component**2 / level, rel=1e-3)


def test_filter_and_window_are_those_of_the_sdk() -> None:
    assert (period_two.DECAY, period_two.WINDOW) == (DECAY, WINDOW)


@pytest.mark.parametrize("beta1", [0.0, 0.9, 0.95])
@pytest.mark.parametrize("growth", [0.02, 0.2, 1.0])
def test_stability_ratio_is_that_of_the_sdk(beta1: float, growth: float) -> None:
    response = GradientResponse(direct=0.0, momentum=1.0, intake=1 - beta1, decay=beta1)
    assert stability_ratio(growth, beta1) == pytest.approx(response.stability_ratio(growth))


def oscillate(ratio: float, beta2: float) -> tuple[list[float], list[float]]:
    """Return g²/v and the loss at each step of Adam on a parabola of curvature `ratio` × the limit of a stale v."""
    beta1, lr, steps = 0.9, 0.01, 600
    curvature = ratio * 2 / lr * (1 + beta1) / (1 - beta1)
    weight, first, second = 1e-12, 0.0, 1.0
    decoupling, losses = [], []
    for _ in range(steps):
        gradient = curvature * weight
        first = beta1 * first + (1 - beta1) * gradient
        second += (1 - beta2) * gradient**2  # what decays is made up for by the other gradients
        weight -= lr * first / math.sqrt(second)
        decoupling.append(gradient**2 / second)
        losses.append(0.5 * curvature * weight**2)
    return decoupling, losses


@pytest.mark.parametrize("beta2", [0.99, 0.999])
@pytest.mark.parametrize("ratio", [1.003, 1.01, 1.03])
def test_an_oscillation_ends_where_v_has_caught_up(ratio: float, beta2: float) -> None:
    decoupling, losses = oscillate(ratio, beta2)
    top = int(np.argmax(losses))
    amplitudes = 0.5 * np.log(losses)
    growth = float(amplitudes[60] - amplitudes[40]) / 20
    assert stability_ratio(growth, 0.9) == pytest.approx(ratio, rel=1e-3)
    expected = peak_decoupling(growth, 0.9, beta2)
    assert expected / 3 < max(decoupling[: top + 3]) < expected * 3


def test_the_held_loss_is_that_of_the_direction_and_gives_the_date() -> None:
    """At its limit a direction holds the memory loss × g²/v; it grows by ρ² a step."""
    component = PeriodTwo()
    for step in range(8):
        reading = Reading(step=step, period_two=math.sqrt(full_share(0.1)), period_two_growth=0.1, decoupling=1e-4)
        swing = component.update(reading, math.log(2.0), 0.999)
    assert swing is not None
    assert swing.share == pytest.approx(1.0)
    assert swing.held == pytest.approx(2e-4)
    assert swing.speed == pytest.approx(0.1)
    assert swing.peak == pytest.approx(2.0 * peak_decoupling(0.1, 0.9, 0.999))
    assert swing.steps_until(2e-2) == pytest.approx(math.log(10) / 0.1)


def test_growth_that_increases_is_faster_now_than_its_average() -> None:
    component = PeriodTwo()
    for step in range(8):
        reading = Reading(step=step, period_two=0.9, period_two_growth=0.1 + 0.01 * step, decoupling=1e-4)
        swing = component.update(reading, 0.0, 0.999)
    assert swing is not None
    assert swing.speed == pytest.approx(0.17 + 0.01 * (WINDOW - 1) / 2)


@pytest.mark.parametrize(
    ("level", "rise"),
    [(1.0, 0.6), (1e-2, 1e-2), (1e-3, 2e-3), (1e-9, 5e-4)],
)
def test_a_small_loss_must_rise_by_what_the_first_losses_make_worth_a_warning(level: float, rise: float) -> None:
    record = HeightRecord()
    for step in range(60):
        record.update(Reading(step=step, loss=1.0 if step < 3 else level), is_jumping=False)
    assert record.warning_rise() == pytest.approx(rise)


@pytest.mark.parametrize(
    ("losses", "rise"), [([1.0] * 9, 0.05), ([1.0, 1.2, 0.8, 1.1, 0.9], 3 * 1.4826 * 0.1), ([1e-9] * 60, 1e-3)]
)
def test_a_spike_begins_above_the_noise_of_the_losses_and_a_share_of_their_level(
    losses: list[float], rise: float
) -> None:
    record = HeightRecord()
    if losses[0] < 1.0:
        losses = [1.0, *losses]
    for step, loss in enumerate(losses):
        record.update(Reading(step=step, loss=loss), is_jumping=False)
    assert record.onset_floor() == pytest.approx(rise)


def alternating(
    share: float, *, level: float = 1e-3, growth: float = 0.15, decoupling: float = 1e-4
) -> Iterator[Sample]:
    """Yield a quiet loss and ‖g‖ over which an alternating component grows from step 40 on; no curvature is logged."""
    for step in range(1, 70):
        is_growing = step > 40
        yield streams.sample(
            step, level, gradient=1e-2, decoupling=decoupling,
            period_two=share if is_growing else 0.33, period_two_growth=growth if is_growing else 0.0,
        )  # fmt: skip


def test_an_alternation_that_grows_is_a_warning_without_curvature() -> None:
    opened = streams.first(streams.verdicts(alternating(0.9)), "spike-predicted", "warning", "critical")
    assert opened is not None
    step, finding = opened
    assert step == 41
    assert finding.evidence["sign"] == "alternation"
    assert finding.evidence["alternation_growth_per_step"] == 0.15
    assert "changes its sign at every step" in finding.message
    assert finding.predicted_step is not None


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("noise has no period", {"share": 0.4}),
        ("the component does not grow", {"growth": 0.01}),
        ("v catches up with the gradient", {"decoupling": 1.5}),
    ],
)
def test_no_warning_without_a_build_up(what: str, changed: dict[str, float]) -> None:
    found = streams.verdicts(alternating(**{"share": 0.9, **changed}))
    assert streams.first(found, "spike-predicted") is None, what


def test_a_ripple_is_a_watch() -> None:
    """The same oscillation under a loss so high that its expected rise is a few per cent."""
    found = streams.verdicts(alternating(0.9, level=50.0))
    assert streams.first(found, "spike-predicted", "warning", "critical") is None
    opened = streams.first(found, "spike-predicted")
    assert opened is not None
    assert opened[1].level == "watch"


def test_an_alternation_below_a_measured_limit_is_no_warning() -> None:
    measured = (
        replace(item, scalars={**item.scalars, "lambda_max": 100.0, "lambda_grad": 10.0}) for item in alternating(0.9)
    )
    assert streams.first(streams.verdicts(measured), "spike-predicted") is None


def test_the_component_counts_between_steps_whose_layers_are_measured() -> None:
    thinned = (item if item.step % 8 == 0 else replace(item, block=None) for item in alternating(0.9))
    opened = streams.first(streams.verdicts(thinned), "spike-predicted", "warning", "critical")
    assert opened is not None
    assert opened[0] == 41


def test_a_component_that_is_not_finite_or_out_of_range_raises_nothing() -> None:
    bad = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300)
    spoiled = (
        replace(item, scalars={**item.scalars, name: bad[item.step % len(bad)]})
        for name in ("period_two", "period_two_growth")
        for item in streams.healthy(60, seed=3)
    )
    assert len(streams.verdicts(spoiled)) == 120


def test_a_jump_too_small_to_count_does_not_end_the_prediction_of_the_spike() -> None:
    """The loss of a run that began at 1 has fallen to 1e-6, and its first rise is 2e-4 of where it began."""
    quiet = [streams.sample(step, 1.0 if step <= 3 else 1e-6, gradient=1e-2, decoupling=1e-4) for step in range(1, 60)]
    rising = [
        streams.sample(
            step, 1e-6 + 2e-4 * min(1.0, (step - 59) / 3), gradient=1e-2, decoupling=0.05,
            period_two=0.9, period_two_growth=0.15,
        )
        for step in range(60, 70)
    ]  # fmt: skip
    found = streams.verdicts([*quiet, *rising])
    assert streams.first(found, "spike") is not None, "the rise is seen"
    assert found[-1].findings[0].kind == "spike-predicted"
    assert found[-1].findings[0].level in ("warning", "critical")


def test_snapshots_keep_the_component() -> None:
    suite, samples = DetectorSuite(), list(alternating(0.9))
    whole = streams.verdicts(samples)
    parts = streams.verdicts(samples[:43], suite)
    parts += streams.verdicts(samples[43:], DetectorSuite.restore(suite.snapshot()))
    assert repr(parts) == repr(whole)
