"""Advice follows the evidence, because remedies conflict."""

from __future__ import annotations

import msgspec
import pytest

from server.detectors.advice import CHECKPOINT, advice_after_spike, advice_before_spike
from server.detectors.layer_sums import sums_of
from server.detectors.signals import Reading, Signals
from server.models import Cause
from tests.support import streams


@pytest.fixture
def reading() -> Reading:
    sample = streams.sample(1, lr=0.01)
    return Signals().update(sample, sums_of(sample))


def test_checkpoint_comes_first_before_a_spike(reading: Reading) -> None:
    for cause in Cause:
        assert advice_before_spike(cause, reading)[0] == CHECKPOINT


def test_stale_second_moment_forgets_faster_and_raises_eps(reading: Reading) -> None:
    advice = advice_before_spike(Cause.STALE_SECOND_MOMENT, reading)
    assert "β2 0.999 → 0.99: v forgets in 100 steps instead of 1,000" in advice
    assert any(line.startswith("Raise ε from 1e-08 to 0.0001") for line in advice)
    assert not any("Lower ε" in line for line in advice)


def test_vanished_gradients_lower_eps(reading: Reading) -> None:
    advice = advice_before_spike(Cause.VANISHED_GRADIENTS, reading)
    assert any(line.startswith("Lower ε from 1e-08 to 1e-12") for line in advice)
    assert not any("Raise ε" in line for line in advice)


def test_an_optimizer_without_second_moment_gets_no_advice_about_it(reading: Reading) -> None:
    sgd = msgspec.structs.replace(streams.ADAM, name="SGD", family="sgd", beta2=None, eps=None)
    advice = advice_before_spike(Cause.STALE_SECOND_MOMENT, msgspec.structs.replace(reading, optimizer=sgd))
    assert not any("β2" in line or "ε" in line for line in advice)


def test_short_memory_is_not_shortened_further(reading: Reading) -> None:
    short = msgspec.structs.replace(streams.ADAM, beta2=0.95)
    advice = advice_before_spike(Cause.STALE_SECOND_MOMENT, msgspec.structs.replace(reading, optimizer=short))
    assert not any(line.startswith("β2") for line in advice)


def test_a_bad_batch_blames_no_hyperparameter(reading: Reading) -> None:
    advice = advice_after_spike(Cause.BAD_BATCH, reading)
    assert any("Skip the batch" in line for line in advice)
    assert not any("lr" in line or "β2" in line or "ε" in line for line in advice)


def test_every_cause_has_advice(reading: Reading) -> None:
    lists = [advice_after_spike(cause, reading) for cause in Cause]
    assert all(len(advice) >= 2 for advice in lists)
