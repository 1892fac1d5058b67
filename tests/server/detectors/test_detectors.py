"""Each detector on a stream that it must report, and on similar streams that it must not report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from msgspec.structs import replace

from server.detectors.context import Context
from server.detectors.detector_suite import DetectorSuite
from server.detectors.lr_jump import LearningRateJumpDetector
from server.detectors.signals import Reading
from server.models import Cause, Sample, Stage
from tests.support import streams


def with_bad_batch(at: int, *, build_up: bool = False, lr_after: float = 0.01) -> Iterator[Sample]:
    noise = np.random.default_rng(0)
    for step in range(1, at + 40):
        climb = math.exp(0.15 * max(0, min(step - at + 15, 15))) if build_up and step < at else 1.0
        jump = step == at
        yield streams.sample(
            step,
            (8.0 if jump else 1.0) * math.exp(0.05 * noise.standard_normal()),
            lr=lr_after if step >= at else 0.01,
            gradient=(20.0 if jump else climb) * math.exp(0.1 * noise.standard_normal()),
            shares=(1.0, 8.0, 1.0) if jump else (1.0, 1.0, 1.0),
        )


def test_bad_batch_is_named_with_its_step_and_layer_once_the_loss_is_back() -> None:
    found = streams.verdicts(with_bad_batch(150))
    named = streams.first(found, "bad-batch")
    assert named is not None
    assert named[0] == 151
    assert named[1].step == 150
    assert named[1].level == "watch"
    assert named[1].cause is Cause.BAD_BATCH
    assert named[1].layers[0] == "2.weight"
    assert streams.first(found, "spike-predicted") is None
    spikes = [f for verdict in found for f in verdict.findings if f.kind == "spike"]
    assert [spike.cause for spike in spikes[:2]] == [Cause.UNKNOWN, Cause.BAD_BATCH]
    assert {spike.level.value for spike in spikes} == {"watch"}


def test_a_jump_that_lasts_is_not_a_bad_batch() -> None:
    lasting = [
        replace(s, scalars={**s.scalars, "loss": 8.0}) if 150 <= s.step < 155 else s for s in with_bad_batch(150)
    ]
    found = streams.verdicts(lasting)
    assert streams.first(found, "bad-batch") is None
    assert streams.first(found, "spike", "warning", "critical") is not None


def test_a_log_of_every_hundred_steps_names_no_bad_batch() -> None:
    sparse = [replace(s, step=100 * s.step) for s in with_bad_batch(150)]
    assert streams.first(streams.verdicts(sparse), "bad-batch") is None


def test_a_jump_after_a_build_up_is_not_a_bad_batch() -> None:
    assert streams.first(streams.verdicts(with_bad_batch(150, build_up=True)), "bad-batch") is None


def test_a_jump_of_loss_with_the_learning_rate_is_not_a_bad_batch() -> None:
    found = streams.verdicts(with_bad_batch(150, lr_after=0.3))
    assert streams.first(found, "bad-batch") is None
    spike = streams.first(found, "spike")
    assert spike is not None
    assert spike[1].cause is Cause.LEARNING_RATE


def test_a_step_that_raises_its_own_loss_is_not_a_bad_batch() -> None:
    samples = [
        streams.sample(
            s.step,
            s.scalars["loss"],
            gradient=20.0 if s.step == 150 else 1.0,
            lambda_step=400.0 if s.step == 150 else 50.0,
        )
        for s in with_bad_batch(150)
    ]
    assert streams.first(streams.verdicts(samples), "bad-batch") is None


def rates(steps: int, schedule: str) -> list[float]:
    peak = 1e-2
    if schedule == "linear":
        return [peak * min(1.0, step / 100) for step in range(steps)]
    if schedule == "cosine":
        return [peak * min(1.0, (s + 1) / 50) * (0.55 + 0.45 * math.cos(math.pi * s / steps)) for s in range(steps)]
    if schedule == "staircase":
        return [peak * min(1.0, (4 + step // 30) / 8) for step in range(steps)]
    return [peak] * steps


@pytest.mark.parametrize("schedule", ["linear", "cosine", "staircase", "constant"])
def test_schedules_are_not_jumps(schedule: str) -> None:
    detector = LearningRateJumpDetector()
    readings = [Reading(step=step, lr=lr) for step, lr in enumerate(rates(400, schedule))]
    assert not any(detector.update(reading, Context()) for reading in readings)


@pytest.mark.parametrize("steps", [[*range(1, 101), *range(500, 20_001, 500)], [*range(50, 20_001, 250)]])
def test_a_warm_up_over_the_pause_between_two_records_is_not_a_jump(steps: list[int]) -> None:
    samples = [Sample(step=step, time=0.0, scalars={"loss": 2.0, "lr": 1e-3 * min(1, step / 1000)}) for step in steps]
    assert streams.first(streams.verdicts(samples), "lr-jump") is None


def test_a_rate_that_changed_over_a_pause_did_not_jump_in_one_step() -> None:
    rates = [(500 * k, 1e-3 if k < 20 else 1e-2) for k in range(1, 40)]
    named = streams.first(
        streams.verdicts(Sample(step=s, time=0.0, scalars={"loss": 2.0, "lr": lr}) for s, lr in rates), "lr-jump"
    )
    assert named is not None
    assert "between steps 9500 and 10000" in named[1].message


@pytest.mark.parametrize(("factor", "level"), [(2.0, "watch"), (5.0, "warning"), (30.0, "critical")])
def test_learning_rate_jump_is_named_with_both_rates(factor: float, level: str) -> None:
    samples = [streams.sample(step, lr=0.01 if step < 100 else 0.01 * factor) for step in range(1, 120)]
    named = streams.first(streams.verdicts(samples), "lr-jump")
    assert named is not None
    step, finding = named
    assert (step, finding.level) == (100, level)
    assert finding.evidence["learning_rate_before"] == 0.01
    assert finding.evidence["learning_rate_after"] == 0.01 * factor


def test_warm_restart_is_only_watched() -> None:
    down = [0.01 * (0.5 + 0.5 * math.cos(math.pi * (s % 100) / 101)) for s in range(200)]
    found = streams.verdicts(streams.sample(step, lr=lr) for step, lr in enumerate(down, start=1))
    restart = streams.first(found, "lr-jump")
    assert restart is not None
    assert restart[1].level == "watch"


def norms_only(norms: Iterable[float], loss: float = 1.0) -> list[Sample]:
    """Return a log with a loss and the scalar gradient norm alone."""
    return [Sample(step=step, time=0.0, scalars={"loss": loss, "grad_norm": norm}) for step, norm in enumerate(norms)]


def test_a_gradient_norm_that_was_never_finite_was_not_measured() -> None:
    """Ten schedule-free trainings of a public benchmark log `grad_norm` as NaN from the first record to the last."""
    found = streams.verdicts(norms_only([math.nan] * 300))
    assert [event for verdict in found for event in verdict.events if event.kind == "nonfinite"] == []
    assert streams.first(found, "nonfinite") is None


def test_a_gradient_norm_counts_after_a_finite_one() -> None:
    samples = norms_only([math.nan] * 5 + [1.0] * 5 + [math.inf])
    suite = DetectorSuite()
    assert streams.first(streams.verdicts(samples[:10], suite), "nonfinite") is None
    first = streams.first(streams.verdicts(samples[10:], DetectorSuite.restore(suite.snapshot())), "nonfinite", "watch")
    assert first is not None
    assert first[1].step == 10


def test_a_gradient_norm_counts_together_with_the_loss_and_the_layers() -> None:
    alone = streams.verdicts(norms_only([math.nan], loss=math.nan))[0]
    assert [(one.level, one.evidence["nonfinite_gradients"]) for one in alone.findings] == [("critical", 1)]
    layers = streams.verdicts([streams.sample(1, nonfinite=(2, 0, 0), grad_norm=math.nan)])[0]
    assert [(one.level, one.evidence["nonfinite_gradients"]) for one in layers.findings] == [("watch", 2)]


def test_nonfinite_loss_is_critical_and_names_the_layer() -> None:
    samples = [*streams.constant(50), streams.sample(51, math.nan, nonfinite=(0, 3, 0))]
    named = streams.first(streams.verdicts(samples), "nonfinite")
    assert named is not None
    assert named[0] == 51
    assert named[1].level == "critical"
    assert named[1].layers == ("2.weight",)
    assert named[1].evidence["nonfinite_gradients"] == 3


def test_one_skipped_step_of_a_loss_scaler_is_only_watched() -> None:
    samples = [*streams.constant(50), streams.sample(51, 1.0, nonfinite=(1, 0, 0)), streams.sample(52)]
    found = streams.verdicts(samples)
    assert streams.first(found, "nonfinite", "watch") is not None
    assert streams.first(found, "nonfinite", "warning", "critical") is None


def test_divergence_is_told_from_a_spike_that_comes_back() -> None:
    noise = np.random.default_rng(1)

    def run(after: float) -> Iterator[Sample]:
        for step in range(1, 400):
            level = 1.0 if step < 150 else 40.0 if step < 165 else after
            yield streams.sample(step, level * math.exp(0.02 * noise.standard_normal()))

    assert streams.first(streams.verdicts(run(1.0)), "divergence") is None
    assert streams.first(streams.verdicts(run(40.0)), "divergence", "critical") is not None


def test_vanished_gradients_are_watched_but_never_used_ones_are_not() -> None:
    sinking = [streams.sample(step, eps_fraction=min(1.0, step / 200)) for step in range(1, 250)]
    named = streams.first(streams.verdicts(sinking), "eps-floor")
    assert named is not None
    assert named[1].level == "watch"
    unused = [streams.sample(step, eps_fraction=0.8) for step in range(1, 250)]
    assert streams.first(streams.verdicts(unused), "eps-floor") is None


def test_lost_optimizer_state_is_predicted_and_named() -> None:
    def run() -> Iterator[Sample]:
        noise = np.random.default_rng(2)
        for step in range(1, 160):
            lost = step == 150
            loss = 1.0 if step <= 150 else 6.0
            decoupling = 1.0 if lost else 0.6 * math.exp(0.2 * noise.standard_normal())
            yield streams.sample(step, loss * math.exp(0.02 * noise.standard_normal()), decoupling=decoupling)

    found = streams.verdicts(run())
    predicted = streams.first(found, "spike-predicted", "warning", "critical")
    assert predicted is not None
    assert predicted[0] == 150
    assert predicted[1].cause is Cause.STATE_LOSS
    spike = streams.first(found, "spike")
    assert spike is not None
    assert spike[1].cause is Cause.STATE_LOSS


def test_leading_layers_carry_their_share_of_the_growth() -> None:
    found = streams.verdicts(streams.exponential(start=100, rate=0.2, decoupling=1e-6, steps=125))
    opened = streams.first(found, "spike-predicted", "warning", "critical")
    assert opened is not None
    assert opened[1].layers == streams.LAYERS
    assert opened[1].layer_shares == pytest.approx((0.7, 0.2, 0.1), abs=0.01)


def test_stages_follow_the_mechanism_in_order() -> None:
    found = streams.verdicts(streams.exponential(start=120, rate=0.15, decoupling=1e-6, steps=175))
    order = [event.detail["stage"] for verdict in found for event in verdict.events if event.kind == "stage"]
    assert order[:5] == [Stage.NOT_JUDGED, Stage.STABLE, Stage.DECOUPLED, Stage.UNSTABLE, Stage.SPIKING]
