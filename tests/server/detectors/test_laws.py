"""Laws that every detector obeys on any stream.

They go through the ordered list of the detector suite, so a new detector is covered without a change here.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from client_sdk import vocabulary
from server.detectors.context import Context
from server.detectors.detector_suite import DETECTORS, READ_SCALARS, DetectorSuite
from server.detectors.layer_sums import STATISTICS, sums_of
from server.detectors.signals import Reading, Signals
from server.evaluation.recordings import read_recordings
from server.models import AlertLevel, Event, Finding, Layout, Sample, Verdict
from tests.support import streams

DATA = Path(__file__).parents[2] / "data"
STREAMS: dict[str, Callable[[], Iterator[Sample]]] = {
    "constant": lambda: streams.constant(300),
    "healthy": lambda: streams.healthy(400, seed=1),
    "restless": lambda: streams.restless(700, seed=0),
    "exponential": lambda: streams.exponential(start=100, rate=0.2, decoupling=1e-4, steps=200),
    "approaching": lambda: streams.approaching(300, crossing=200, rate=0.002, decoupling=1e-6),
    "spoiled": lambda: streams.spoiled(streams.healthy(400, seed=2), seed=3),
    "spoiled growth": lambda: streams.spoiled(
        streams.exponential(start=60, rate=0.2, decoupling=1e-6, steps=250), seed=1
    ),
    "bad batch": lambda: iter(next(read_recordings(DATA)).samples),
}
each_stream = pytest.mark.parametrize("name", sorted(STREAMS))
each_detector = pytest.mark.parametrize("detector", DETECTORS)

Judged = tuple[Event | None, Finding | None]


@functools.cache
def readings_of(name: str) -> tuple[Reading, ...]:
    """Return the readings of a stream, which all detectors share."""
    signals = Signals()
    return tuple(signals.update(sample, sums_of(sample)) for sample in STREAMS[name]())


def judge_alone(detector: str, readings: Sequence[Reading], *, cut: int | None = None) -> list[Judged]:
    """Return what one detector reports without the others; its state goes through msgpack at the cut."""
    judge = DetectorSuite().detectors[detector]
    reported: list[Judged] = []
    for position, reading in enumerate(readings):
        if position == cut:
            judge = msgspec.msgpack.decode(msgspec.msgpack.encode(judge), type=type(judge))
        context = Context(is_first=position == 0)
        event = judge.update(reading, context)
        reported.append((event, judge.finding(reading, context)))
    return reported


@each_detector
@each_stream
def test_state_of_a_detector_round_trips(detector: str, name: str) -> None:
    readings = readings_of(name)
    whole = judge_alone(detector, readings)
    for cut in (1, len(readings) // 2):
        assert repr(judge_alone(detector, readings, cut=cut)) == repr(whole)


@each_detector
@pytest.mark.parametrize("name", ["spoiled", "spoiled growth"])
def test_a_detector_survives_nan_infinity_and_gaps(detector: str, name: str) -> None:
    readings = readings_of(name)
    assert len(judge_alone(detector, readings)) == len(readings)


@each_detector
def test_a_detector_is_silent_on_a_constant_stream(detector: str) -> None:
    first, *later = judge_alone(detector, readings_of("constant"))
    assert first[1] is None
    assert all(judged == (None, None) for judged in later)


def test_the_state_of_every_detector_is_bounded() -> None:
    suite = DetectorSuite()

    def sizes() -> dict[str, int]:
        return {name: len(msgspec.msgpack.encode(one)) for name, one in suite.detectors.items()}

    streams.verdicts(streams.healthy(300, seed=5), suite)
    early = sizes()
    streams.verdicts((msgspec.structs.replace(s, step=s.step + 300) for s in streams.healthy(1500, seed=6)), suite)
    assert {name for name, size in sizes().items() if size >= 1.5 * early[name] + 50} == set()


@each_stream
def test_restored_suite_goes_on_exactly_where_it_stood(name: str) -> None:
    samples = list(STREAMS[name]())
    whole = streams.verdicts(samples)
    for cut in (1, 7, len(samples) // 2, len(samples) - 5):
        before = DetectorSuite()
        parts = streams.verdicts(samples[:cut], before)
        after = DetectorSuite.restore(before.snapshot())
        parts += streams.verdicts(samples[cut:], after)
        assert repr(parts) == repr(whole)


@each_stream
def test_snapshot_after_every_sample_changes_nothing(name: str) -> None:
    samples = list(STREAMS[name]())[:150]
    restored: list[Verdict] = []
    suite = DetectorSuite()
    for item in samples:
        restored.append(suite.update(item))
        suite = DetectorSuite.restore(suite.snapshot())
    assert repr(restored) == repr(streams.verdicts(samples))


@pytest.mark.parametrize("seed", range(5))
def test_nan_infinity_and_gaps_never_raise(seed: int) -> None:
    samples = streams.spoiled(streams.exponential(start=60, rate=0.2, decoupling=1e-6, steps=250), seed)
    found = streams.verdicts(samples)
    assert len(found) == 250
    assert streams.first(found, "nonfinite") is not None


def test_empty_samples_and_unknown_scalars_change_nothing() -> None:
    suite = DetectorSuite()
    streams.verdicts(streams.constant(50), suite)
    before = suite.snapshot()
    suite.update(Sample(step=51, time=0.0, scalars={}))
    suite.update(Sample(step=52, time=0.0, scalars={"accuracy": 0.3}))
    assert suite.snapshot() == before


def test_a_step_logged_twice_counts_once() -> None:
    samples = list(streams.healthy(100, seed=4))
    twice = [item for one in samples for item in (one, msgspec.structs.replace(one, scalars={"loss": 99.0}))]
    assert streams.verdicts(twice)[-1] == streams.verdicts(samples)[-1]


def test_constant_stream_is_silent() -> None:
    assert all(not verdict.findings for verdict in streams.verdicts(streams.constant(600)))


@pytest.mark.parametrize("seed", range(6))
def test_healthy_noise_raises_nothing_above_watch(seed: int) -> None:
    found = streams.verdicts(streams.healthy(1000, seed))
    loud = [f for verdict in found for f in verdict.findings if f.level is not AlertLevel.WATCH]
    assert loud == []


def test_memory_is_bounded() -> None:
    suite = DetectorSuite()
    streams.verdicts(streams.healthy(300, seed=5), suite)
    early = len(suite.snapshot())
    streams.verdicts((msgspec.structs.replace(s, step=s.step + 300) for s in streams.healthy(1500, seed=6)), suite)
    assert len(suite.snapshot()) < 1.2 * early


def test_a_new_attempt_starts_from_nothing() -> None:
    suite = DetectorSuite()
    streams.verdicts(streams.exponential(start=60, rate=0.3, decoupling=1e-4, steps=80), suite)
    again = [msgspec.structs.replace(item, attempt=1) for item in streams.healthy(60, seed=7)]
    fresh = DetectorSuite()
    assert repr(streams.verdicts(again, suite)) == repr(streams.verdicts(again, fresh))


def test_snapshot_of_another_version_is_refused() -> None:
    data = DetectorSuite().snapshot().replace(b"\xa7version\x01", b"\xa7version\x63")
    with pytest.raises(ValueError, match="version 99"):
        DetectorSuite.restore(data)
    with pytest.raises(ValueError):  # noqa: PT011 - msgspec words the message, but it must be a ValueError
        DetectorSuite.restore(b"nothing of ours")


def test_first_verdict_reports_the_stage() -> None:
    verdict = DetectorSuite().update(next(streams.constant(1)))
    assert verdict.events == (Event(step=1, kind="stage", detail={"stage": "not-judged"}),)
    assert verdict.stage_reason == "too-few-records"


def final(samples: Iterable[Sample]) -> tuple[str, str | None, str | None]:
    """Return the last stage of a stream, the reason for it, and the name of the loss."""
    last = streams.verdicts(samples)[-1]
    return last.stage.value, last.stage_reason, last.loss_name


def with_scalars(steps: int, **scalars: float) -> list[Sample]:
    return [Sample(step=step, time=0.0, scalars=scalars) for step in range(1, steps + 1)]


def test_a_run_without_evidence_is_never_called_stable() -> None:
    assert final(with_scalars(50, accuracy=0.5)) == ("not-judged", "no-loss", None)
    assert final(with_scalars(50, lr=0.1, grad_norm=1.0)) == ("not-judged", "no-loss", None)
    assert final(with_scalars(9, loss=1.0)) == ("not-judged", "too-few-records", "loss")
    assert final(with_scalars(50, loss=1.0)) == ("not-judged", "loss-only", "loss")
    assert final(with_scalars(50, loss=1.0, lr=0.1, lambda_grad=2.0)) == ("stable", None, "loss")
    assert final(streams.constant(10)) == ("stable", None, "loss")
    without_loss = (msgspec.structs.replace(one, scalars={"lr": 0.01}) for one in streams.constant(50))
    assert final(without_loss) == ("not-judged", "no-loss", None)
    plain = Layout(id=0, layers=("a",), statistics=("grad_norm",), sizes=(1,))
    block = np.ones((1, 1), dtype=np.float32)
    sgd = [msgspec.structs.replace(one, layout=plain, block=block) for one in with_scalars(50, loss=1.0)]
    assert final(sgd) == ("not-judged", "no-second-moment", "loss")


@pytest.mark.parametrize(
    "name", ["train/loss", "train_loss", "training_loss", "Loss/train", "loss/train", "nll", "trainLoss", "total_loss"]
)
def test_a_loss_of_another_name_is_judged_alike(name: str) -> None:
    plain = [Sample(step=i, time=0.0, scalars={"loss": 1.0 if i < 50 else 5.0}) for i in range(60)]
    other = [msgspec.structs.replace(one, scalars={name: one.scalars["loss"], "val/loss": 0.5}) for one in plain]
    suite = DetectorSuite()
    found = streams.verdicts(other[:30], suite)
    found += streams.verdicts(other[30:], DetectorSuite.restore(suite.snapshot()))
    assert [verdict.findings for verdict in found] == [verdict.findings for verdict in streams.verdicts(plain)]
    assert any(verdict.stage == "spiking" for verdict in found)
    assert found[-1].loss_name == name


def test_a_chosen_loss_replaces_the_one_named_loss() -> None:
    suite = DetectorSuite()
    suite.choose_loss("elbo")
    samples = [
        Sample(step=i, time=0.0, scalars={"loss": float(i % 7), "elbo": 1.0 if i < 50 else 5.0}) for i in range(60)
    ]
    onset = streams.first(streams.verdicts(samples, suite), "spike")
    assert onset is not None
    assert onset[1].step == 50
    suite = DetectorSuite()
    suite.choose_loss("missing")
    last = streams.verdicts(samples, suite)[-1]
    assert (last.stage, last.stage_reason, last.findings) == ("not-judged", "no-loss", ())


def test_another_loss_is_judged_anew() -> None:
    samples = [Sample(step=i, time=0.0, scalars={"loss": 1.0, "elbo": 50.0 if i < 90 else 200.0}) for i in range(100)]
    suite = DetectorSuite()
    found = streams.verdicts(samples[:60], suite)
    suite.choose_loss("elbo")
    suite = DetectorSuite.restore(suite.snapshot())
    found += streams.verdicts(samples[60:], suite)
    assert (found[59].stage_reason, found[60].stage_reason) == ("loss-only", "too-few-records")
    assert [event.detail for event in found[60].events] == [{"stage": "not-judged"}]
    assert found[60].loss_name == suite.judged_loss == "elbo"
    assert streams.first(found[:90], "spike") is None, "the values of two scalars are not one curve"
    assert streams.first(found, "spike", "warning", "critical") is not None
    suite.choose_loss("elbo")
    assert streams.verdicts([Sample(step=100, time=0.0, scalars={"elbo": 200.0})], suite)[0].events == ()


def test_a_preferred_loss_is_taken_where_it_is_logged() -> None:
    suite = DetectorSuite()
    suite.choose_loss(None, "val/loss")
    assert suite.update(Sample(step=0, time=0.0, scalars={"loss": 1.0})).loss_name == "loss"
    assert suite.update(Sample(step=1, time=0.0, scalars={"loss": 1.0, "val/loss": 2.0})).loss_name == "val/loss"
    assert suite.update(Sample(step=2, time=0.0, scalars={"loss": 1.0})).loss_name == "val/loss"
    suite.choose_loss(None)
    assert suite.update(Sample(step=3, time=0.0, scalars={"loss": 1.0})).loss_name == "loss"


def test_samples_without_layers_are_judged_by_their_scalars() -> None:
    noise = np.random.default_rng(0)
    losses = [1.0 + 0.01 * noise.standard_normal() for _ in range(100)]
    scalars = [Sample(step=i + 1, time=0.0, scalars={"loss": loss}) for i, loss in enumerate([*losses, 5.0, 5.0, 4.0])]
    assert streams.first(streams.verdicts(scalars), "spike", "warning", "critical") is not None


def test_huge_values_do_not_overflow() -> None:
    samples = [streams.sample(step, sys.float_info.max / 2, gradient=1e18) for step in range(1, 80)]
    assert math.isfinite(sum(len(verdict.findings) for verdict in streams.verdicts(samples)))


def test_the_detectors_read_scalars_and_statistics_of_the_vocabulary() -> None:
    assert set(READ_SCALARS) <= vocabulary.SCALARS.keys()
    assert set(STATISTICS) <= vocabulary.STATISTICS.keys()
