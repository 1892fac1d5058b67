"""The expected height of a spike, what the run's own spikes teach about it, and ripples that are no warning."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import pytest

from server.detectors.detector_suite import DetectorSuite
from server.detectors.height import RIPPLE, HeightRecord
from server.detectors.layer_sums import sums_of
from server.detectors.signals import Reading, Signals
from server.models import Optimizer, Sample
from tests.support import streams


def follow(record: HeightRecord, losses: list[float], *, first: int, jump: range = range(0)) -> None:
    """Add losses under a constant memory loss of 0.1; the loss jumps in `jump`."""
    for step, loss in enumerate(losses, start=first):
        record.update(Reading(step=step, loss=loss, memory_loss=0.1), is_jumping=step in jump)


def test_memory_loss_is_what_a_direction_at_the_limit_holds_when_its_gradient_is_as_large_as_v() -> None:
    """One layer whose v is the same everywhere: c²/(2λ) with c² = (1−β1)/(1+β1)·Σv̂/√v̂ and λ = 2/η."""
    one = streams.sample(1, gradient=0.01, decoupling=1e-4, shares=(1.0, 1e-12, 1e-12), lr=0.02)
    reading = Signals().update(one, sums_of(one))
    second = 0.01**2 / 1e-4  # Σv̂
    along = (1 - 0.9) / (1 + 0.9) * second / math.sqrt(second / 100)
    assert reading.memory_loss == pytest.approx(along / (2 * 2 / 0.02), rel=1e-3)


def test_memory_loss_needs_second_moments_and_adam() -> None:
    one = streams.sample(1)
    assert one.layout is not None
    sgd = msgspec.structs.replace(one.layout, optimizer=Optimizer(name="SGD", family="sgd", lr=0.1))
    for other in (
        msgspec.structs.replace(one, layout=sgd),
        msgspec.structs.replace(one, block=None),
        msgspec.structs.replace(one, layout=msgspec.structs.replace(one.layout, sizes=())),
    ):
        assert Signals().update(other, sums_of(other)).memory_loss is None


def test_own_spikes_correct_the_height_and_narrow_its_interval() -> None:
    record = HeightRecord()
    follow(record, [1.0] * 40, first=1)
    before = record.forecast()
    assert before is not None
    assert before.best == pytest.approx(0.55)
    record.note_sign()
    follow(record, [4.0, 9.0, 3.0], first=41, jump=range(41, 44))
    follow(record, [1.0] * 40, first=44)
    after = record.forecast()
    assert after is not None
    assert 1.5 * before.best < after.best < 8.0, "the spike rose by 8 times the level"
    record.note_sign()
    follow(record, [4.0, 9.0, 3.0], first=84, jump=range(84, 87))
    follow(record, [1.0] * 40, first=87)
    last = record.forecast()
    assert last is not None
    assert after.best < last.best < 8.0
    assert last.high / last.low < before.high / before.low


@pytest.mark.parametrize(("beta2", "best"), [(0.9999, 0.55), (0.999, 0.55), (0.95, 0.2), (0.9, 0.1)])
def test_a_faster_v_ends_a_spike_sooner(beta2: float, best: float) -> None:
    record = HeightRecord()
    optimizer = Optimizer(name="Adam", family="adam", lr=0.01, beta2=beta2)
    for step in range(1, 30):
        reading = Reading(step=step, loss=1.0, memory_loss=0.1, optimizer=optimizer)
        record.update(reading, is_jumping=False)
    record.note_state(reading, ahead=10)
    expected = record.forecast()
    assert expected is not None
    assert expected.best == pytest.approx(best)


def at_level(level: float) -> Iterator[Sample]:
    """Yield Adam's mechanism before its spike, at another level of the loss."""
    for item in streams.exponential(start=100, rate=0.2, decoupling=1e-6, steps=130):
        yield msgspec.structs.replace(item, scalars={**item.scalars, "loss": level})


@pytest.mark.parametrize(("level", "warned"), [(1e-3, True), (1.0, False)])
def test_the_height_relative_to_the_loss_decides_between_watch_and_warning(level: float, warned: bool) -> None:
    found = streams.verdicts(at_level(level))
    assert (streams.first(found, "spike-predicted", "warning", "critical") is not None) is warned
    opened = streams.first(found, "spike-predicted")
    assert opened is not None
    rise = opened[1].evidence["expected_rise"]
    assert isinstance(rise, float)
    assert (rise > RIPPLE) is warned
    assert "The loss may rise by" in opened[1].message


def test_an_oscillation_that_grows_is_a_warning_while_the_norm_is_still() -> None:
    def swinging(alternation: float) -> Iterator[Sample]:
        for step in range(1, 60):
            held = 1e-7 * math.exp(0.2 * max(0, step - 30))
            yield streams.sample(
                step, 4e-4, gradient=1e-3, decoupling=1e-4, lambda_max=202.0, lambda_grad=40.0,
                mode_loss=held, mode_growth=0.1 if step > 36 else 0.0, mode_alternation=alternation, mode_share=0.01,
            )  # fmt: skip

    opened = streams.first(streams.verdicts(swinging(1.0)), "spike-predicted", "warning", "critical")
    assert opened is not None
    assert opened[1].evidence["sign"] == "oscillation"
    assert streams.first(streams.verdicts(swinging(0.2)), "spike-predicted", "warning", "critical") is None, "drift"


def test_snapshots_keep_the_height() -> None:
    suite = DetectorSuite()
    streams.verdicts(at_level(1e-3), suite)
    restored = DetectorSuite.restore(suite.snapshot())
    assert restored.snapshot() == suite.snapshot()
