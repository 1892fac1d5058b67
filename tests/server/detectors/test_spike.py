"""The spike detector on losses with and without spikes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from server.detectors.context import Context
from server.detectors.detector_suite import DetectorSuite
from server.detectors.signals import Reading
from server.detectors.spike import SpikeDetector
from server.models import AlertLevel, Cause, Sample


def follow(losses: list[float]) -> list[tuple[int, int, int]]:
    """Return the steps of trigger, onset and end of each spike."""
    detector, found = SpikeDetector(), []
    for step, loss in enumerate(losses, start=1):
        was_active = detector.active
        ended = detector.update(Reading(step=step, loss=loss), Context())
        if detector.active and not was_active:
            found.append((step, detector.onset, 0))
        if ended is not None:
            found[-1] = (*found[-1][:2], step)
    return found


def judged(losses: list[float], pause: int = 1, **scalars: list[float]) -> list[tuple[str, int, AlertLevel]]:
    """Return title, record and level of each change among the spikes of a log that is written every `pause` steps."""
    suite = DetectorSuite()
    changes: list[tuple[str, int, AlertLevel]] = []
    for record, loss in enumerate(losses):
        logged = {"loss": loss, **{name: values[record] for name, values in scalars.items()}}
        verdict = suite.update(Sample(step=record * pause, time=0.0, scalars=logged))
        for finding in verdict.findings:
            title = f"{finding.kind.value} since record {finding.step / pause:g}"
            if not any(known[0] == title and known[2] == finding.level for known in changes):
                changes.append((title, record, finding.level))
    return changes


def noisy(level: float, relative: float, steps: int, seed: int = 0) -> list[float]:
    noise = np.random.default_rng(seed)
    return [level * (1 + relative * float(noise.standard_normal())) for _ in range(steps)]


def test_a_rise_by_three_percent_on_a_quiet_curve_is_seen() -> None:
    """Marin 32B: 1.96 to 2.02, which every multiplicative rule misses."""
    losses = noisy(11.0, 0.001, 3) + noisy(1.96, 0.002, 200) + noisy(2.02, 0.002, 10)
    found = follow(losses)
    assert [onset for _, onset, _ in found] == [204]
    assert found[0][0] <= 206


def test_numerically_negligible_changes_are_ignored() -> None:
    assert follow([1.0, *noisy(1e-14, 0.05, 100), *noisy(3e-14, 0.05, 60)]) == []


def test_a_spike_out_of_a_negligible_loss_is_seen() -> None:
    assert follow([1.0, *noisy(1e-14, 0.05, 100), 1e-9, 1e-4, 1e-2, 1e-3, *noisy(1e-6, 0.1, 20)])[0][0] in (103, 104)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rules_are_scale_free(scale: float) -> None:
    losses = [*noisy(1.0, 0.05, 100), 3.0, 3.5, 2.0, *noisy(1.0, 0.05, 40, seed=1)]
    assert follow([scale * loss for loss in losses]) == follow(losses)
    assert len(follow(losses)) == 1


@pytest.mark.parametrize("relative", [0.02, 0.1, 0.2])
def test_noise_of_small_batches_is_not_a_spike(relative: float) -> None:
    alarms = sum(len(follow(noisy(2.0, relative, 1000, seed))) for seed in range(10))
    assert alarms <= 2  # in 10,000 steps


def test_the_decay_after_a_spike_is_not_the_next_spike() -> None:
    decay = [1.0 + 8.0 * math.exp(-step / 40) for step in range(200)]
    assert len(follow(noisy(1.0, 0.01, 100) + decay)) == 1


def test_a_new_level_is_learnt() -> None:
    found = follow(noisy(1.0, 0.01, 100) + noisy(2.0, 0.01, 400))
    assert len(found) == 1
    assert found[0][2] - found[0][0] == 150


def test_onset_is_the_start_of_the_rise() -> None:
    climb = [1.0 * 1.04**k for k in range(1, 25)]
    trigger, onset, _ = follow(noisy(1.0, 0.003, 100) + climb + noisy(1.0, 0.003, 60, seed=2))[0]
    assert onset <= 102
    assert onset <= trigger


def spike_and_jump() -> list[float]:
    """Return a falling loss with a spike of 20 records that fades, and a jump that stays."""
    losses = [2 + 1.5 * math.exp(-k / 150) + noise for k, noise in enumerate(noisy(0.0, 0.0, 600))]
    losses = [loss * wobble for loss, wobble in zip(losses, noisy(1.0, 0.01, 600), strict=True)]
    for k in range(20):
        losses[200 + k] += 1 + k if k < 6 else 6 - 0.45 * (k - 6)
    return [loss + 4.0 * (k >= 450) for k, loss in enumerate(losses)]


@pytest.mark.parametrize("pause", [10, 50, 100, 500])
def test_a_curve_gets_the_same_verdict_at_every_logging_interval(pause: int) -> None:
    changes = judged(spike_and_jump())
    assert any(title == "spike since record 200" for title, _, _ in changes)
    assert judged(spike_and_jump(), pause) == changes


def test_a_single_high_loss_is_a_watch() -> None:
    losses = [*noisy(1.0, 0.01, 100), 9.0, *noisy(1.0, 0.01, 100, seed=1)]
    assert [(title, level) for title, _, level in judged(losses)] == [("spike since record 100", AlertLevel.WATCH)]


def test_a_second_high_loss_makes_it_a_warning() -> None:
    losses = [*noisy(1.0, 0.01, 100), 1.6, 1.5, *noisy(1.0, 0.01, 50, seed=1)]
    assert judged(losses) == [
        ("spike since record 100", 100, AlertLevel.WATCH),
        ("spike since record 100", 101, AlertLevel.WARNING),
    ]


def test_the_third_single_high_loss_within_a_hundred_is_a_warning() -> None:
    losses = noisy(1.0, 0.01, 300)
    for record in (100, 130, 160, 290):
        losses[record] = 1.8
    levels = [(record, level) for title, record, level in judged(losses) if title.startswith("spike")]
    assert levels == [
        (100, AlertLevel.WATCH),
        (130, AlertLevel.WATCH),
        (160, AlertLevel.WARNING),
        (290, AlertLevel.WATCH),
    ]


def test_a_rise_on_a_falling_curve_is_seen_at_its_first_record() -> None:
    """The rise stays below losses of a few records earlier, which a median of 40 losses misses."""
    losses = [wobble * (1 + 4 * math.exp(-k / 40)) for k, wobble in enumerate(noisy(1.0, 0.005, 120))]
    losses[60:90] = [loss + 0.9 * math.exp(-k / 15) for k, loss in enumerate(losses[60:90])]
    assert losses[61] < max(losses[20:60])
    assert ("spike since record 60", AlertLevel.WARNING) in [(title, level) for title, _, level in judged(losses)]


def test_a_log_that_changes_its_interval_is_judged_by_the_records_of_the_new_one() -> None:
    steps = [*range(100), *range(500, 15_000, 500)]
    losses = [*noisy(30.0, 0.01, 100), *(5 * 0.97**k for k in range(29))]
    for record in range(115, 123):
        losses[record] += 2.5
    suite = DetectorSuite()
    found = [
        (finding.step, finding.level)
        for step, loss in zip(steps, losses, strict=True)
        for finding in suite.update(Sample(step=step, time=0.0, scalars={"loss": loss})).findings
    ]
    assert (steps[115], AlertLevel.WARNING) in found
    assert {step for step, _ in found} == {steps[115]}


def test_a_small_rise_that_lasts_is_a_warning() -> None:
    losses = [*noisy(1.0, 0.03, 100, seed=3), *noisy(1.15, 0.03, 40, seed=1)]
    (*_, last) = judged(losses)
    assert (last[0], last[2]) == ("spike since record 100", AlertLevel.WARNING)


def test_a_single_high_loss_after_which_the_level_is_higher_has_its_full_level() -> None:
    losses = [*noisy(1.0, 0.02, 100), 9.0, *noisy(1.1, 0.02, 40, seed=1)]
    changes = judged(losses)
    assert ("spike since record 100", 100, AlertLevel.WATCH) in changes
    assert changes[-1][2] is AlertLevel.CRITICAL
    assert changes[-1][1] <= 110


def test_a_spike_after_one_that_was_over_has_its_own_onset() -> None:
    losses = noisy(1.0, 0.01, 130)
    losses[100:103] = losses[112:115] = [2.0, 2.2, 1.8]
    titles = [title for title, _, _ in judged(losses)]
    assert sorted(set(titles)) == ["spike since record 100", "spike since record 112"]


@pytest.mark.parametrize("change", [1.0, 0.05], ids=["exact", "rounded"])
def test_a_loss_of_few_values_is_no_spike(change: float) -> None:
    assert judged([2.0 + change * (k % 3) for k in range(200)]) == []


@pytest.mark.parametrize("seed", [9, 1, 2])
def test_a_two_peaked_loss_gets_one_note_and_no_stream(seed: int) -> None:
    random = np.random.default_rng(seed)
    losses = [
        float(1.2 + 0.15 * random.random() if random.random() < 0.65 else 1.5 + 1.7 * random.random())
        for _ in range(3_000)
    ]
    changes = judged(losses)
    assert sum(title.startswith("loss-noise") for title, _, _ in changes) == 1
    assert max(record for _, record, _ in changes) < 150


def test_a_restart_is_no_bad_batch() -> None:
    losses = [30.0, *noisy(1.0, 0.02, 100), 30.5, 6.0, *noisy(5.0, 0.01, 20), *noisy(1.0, 0.02, 40)]
    norms = [40.0, *noisy(0.6, 0.2, 100), 38.0, *noisy(0.6, 0.2, 61)]
    suite = DetectorSuite()
    found = [
        finding
        for record, (loss, norm) in enumerate(zip(losses, norms, strict=True))
        for finding in suite.update(
            Sample(step=100 * record, time=0.0, scalars={"loss": loss, "grad_norm": norm})
        ).findings
    ]
    spikes = [finding for finding in found if finding.kind == "spike"]
    assert spikes[0].cause is Cause.STATE_LOSS
    assert spikes[0].step == 10_100
    assert not [finding for finding in found if finding.cause is Cause.BAD_BATCH]
