"""Laws of the detectors on random streams that reach their alarms.

Each law goes through the ordered list of the suite and compares the whole state of every detector, so a new detector is
covered without a change here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from client_sdk.protocol import Record
from client_sdk.vocabulary import STATISTICS as KNOWN
from server.detectors.context import Context
from server.detectors.detector_suite import DETECTORS, DetectorSuite
from server.detectors.layer_sums import sums_of
from server.detectors.signals import Reading, Signals
from server.models import AlertKind, Layout, Sample, Verdict
from server.pipeline.packing import pack
from server.pipeline.samples import samples
from server.pyramid.columns import Payload
from tests.support.scenarios import BAD, EPISODES, EXTREME, STATISTICS, Episode, Scenario, samples_of, scenarios

laws = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
each_detector = pytest.mark.parametrize("detector", DETECTORS)

MAX_STATE = 24_000
"""Bytes that a snapshot without layers may take."""
MAX_STATE_OF_A_LAYER = 16
"""Bytes that each layer adds: two averages in float64."""
READS_THE_LOSS: tuple[str, ...] = ("lr_jump", "jump", "divergence", "loss_noise", "outliers")
"""Detectors that read neither layers nor curvature."""
NOT_FINITE = {AlertKind.NONFINITE}


class Told:
    """The verdicts of a suite on a stream, and the state of every detector after it."""

    def __init__(self, stream: Iterable[Sample], suite: DetectorSuite | None = None) -> None:
        self.suite = DetectorSuite() if suite is None else suite
        self.verdicts: list[Verdict] = [self.suite.update(sample) for sample in stream]

    @property
    def kinds(self) -> Counter[AlertKind]:
        """Number of records at which a finding of each kind held."""
        return Counter(finding.kind for verdict in self.verdicts for finding in verdict.findings)

    @property
    def states(self) -> dict[str, bytes]:
        """The encoded state of each detector; two equal ones conclude the same from any further stream."""
        return {name: msgspec.msgpack.encode(one) for name, one in self.suite.detectors.items()}


def assert_same(left: Told, right: Told) -> None:
    """Compare verdicts one by one and the states of the detectors; NaN equals itself."""
    assert len(left.verdicts) == len(right.verdicts)
    for one, other in zip(left.verdicts, right.verdicts, strict=True):
        assert msgspec.msgpack.encode(one) == msgspec.msgpack.encode(other), f"{one}\n{other}"
    states = right.states
    assert [name for name, state in left.states.items() if state != states[name]] == []
    assert left.suite.snapshot() == right.suite.snapshot()


def as_segments(stream: Sequence[Sample], cuts: Iterable[int]) -> Iterator[Sample]:
    """Yield the samples as the server reads them when they arrive in batches that begin at the cuts."""
    layouts: dict[int, Layout] = {sample.layout.id: sample.layout for sample in stream if sample.layout is not None}
    sent = {number: len(layout.statistics) for number, layout in layouts.items()}
    records = [
        Record(
            step=sample.step,
            time=sample.time,
            scalars=dict(sample.scalars),
            layout=None if sample.layout is None else sample.layout.id,
            block=None if sample.block is None else sample.block.tobytes(),
        )
        for sample in stream
    ]
    for start, stop in pairwise(sorted({0, *cuts, len(records)})):
        for draft in pack(start + 1, records[start:stop], layouts, sent):
            yield from samples(Payload(draft.payload).columns(), 0, layouts, summed=True)


def cuts_of(stream: Sequence[Sample], data: st.DataObject) -> list[int]:
    return data.draw(st.lists(st.integers(0, len(stream)), max_size=8), label="cuts")


def spoiled(stream: Sequence[Sample], names: Sequence[str], values: Sequence[float], seed: int) -> list[Sample]:
    """Return the stream with some scalars of these names, and with the layers some statistics, replaced by values."""
    random = np.random.default_rng(seed)
    share = random.choice([0.02, 0.2, 0.9])
    found = []
    for sample in stream:
        scalars = dict(sample.scalars)
        for name in names:
            if name in scalars and random.random() < share:
                scalars[name] = float(random.choice(values))
        block = sample.block
        if "layers" in names and block is not None and random.random() < share:
            with np.errstate(over="ignore"):
                bad = np.array(values).astype(np.float32)
            block = np.where(random.random(block.shape) < 0.5, random.choice(bad, block.shape), block)
        found.append(replace(sample, scalars=scalars, block=block))
    return found


def signals_of(stream: Iterable[Sample]) -> list[Reading]:
    signals = Signals()
    return [signals.update(sample, sums_of(sample)) for sample in stream]


REACHING = (
    Scenario(episodes=(Episode(kind="growth", at=0.5, size=4.0),)),
    Scenario(episodes=(Episode(kind="spike", at=0.6, size=4.0), Episode(kind="vanishing", at=0.4, size=1.0))),
    Scenario(episodes=(Episode(kind="batch", at=0.6, size=4.0), Episode(kind="overflow", at=0.8, size=4.0))),
    Scenario(episodes=(Episode(kind="rise", at=0.4, size=4.0), Episode(kind="learning rate", at=0.4, size=4.0))),
    Scenario(episodes=(Episode(kind="drift", at=0.4, size=1.0),), records=300),
    Scenario(episodes=(Episode(kind="explosion", at=0.6, size=4.0),), statistics=("grad_norm",)),
    Scenario(episodes=(Episode(kind="peaks", at=0.0, size=1.0),), records=240),
)
"""One scenario for each alarm, and together all that can happen."""


def test_the_scenarios_reach_every_alarm() -> None:
    reached: Counter[str] = Counter()
    for scenario in REACHING:
        told = Told(samples_of(scenario))
        reached.update(told.kinds)
        reached.update(event.kind for verdict in told.verdicts for event in verdict.events)
        reached.update(["outlier" for verdict in told.verdicts if verdict.outlier is not None])
    assert {episode.kind for scenario in REACHING for episode in scenario.episodes} == EPISODES.keys()
    assert set(AlertKind) - reached.keys() == {AlertKind.CUSTOM_RULE}, "rules are not a part of the suite"
    assert reached["outlier"]


@laws
@given(scenarios(), st.data())
def test_batches_do_not_matter(scenario: Scenario, data: st.DataObject) -> None:
    stream = samples_of(scenario)
    whole = Told(stream)
    assert_same(whole, Told(as_segments(stream, [])))
    assert_same(whole, Told(as_segments(stream, cuts_of(stream, data))))
    assert_same(whole, Told(as_segments(stream, range(len(stream)))))


@laws
@given(scenarios(), st.data())
def test_a_restart_at_any_record_does_not_matter(scenario: Scenario, data: st.DataObject) -> None:
    stream = samples_of(scenario)
    parts, restored = [], DetectorSuite()
    for start, stop in pairwise([0, *sorted(cuts_of(stream, data)), len(stream)]):
        part = Told(stream[start:stop], restored)
        parts += part.verdicts
        restored = DetectorSuite.restore(part.suite.snapshot())
    again = Told([], restored)
    again.verdicts = parts
    assert_same(Told(stream), again)


@functools.cache
def reaching_readings() -> tuple[tuple[Reading, ...], ...]:
    return tuple(tuple(signals_of(samples_of(scenario))) for scenario in REACHING)


@each_detector
@pytest.mark.parametrize("at", range(len(REACHING)))
def test_each_detector_alone_restarts_at_every_record(detector: str, at: int) -> None:
    whole = restored = DetectorSuite().detectors[detector]
    for position, reading in enumerate(reaching_readings()[at]):
        said = []
        for judge in (whole, restored):
            context = Context(is_first=position == 0)
            said.append((judge.update(reading, context), judge.finding(reading, context), context))
        assert repr(said[0]) == repr(said[1])
        restored = msgspec.msgpack.decode(msgspec.msgpack.encode(restored), type=type(restored))


@laws
@given(
    scenarios(),
    st.lists(st.sampled_from([*samples_of(Scenario())[0].scalars, "layers"]), min_size=1, unique=True),
    st.lists(st.sampled_from(EXTREME) | st.floats(), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_no_value_makes_a_detector_raise(scenario: Scenario, names: list[str], values: list[float], seed: int) -> None:
    stream = spoiled(samples_of(scenario), names, values, seed)
    told = Told(stream)
    assert_same(told, Told(as_segments(stream, range(0, len(stream), 7))))
    assert len(told.suite.snapshot()) < MAX_STATE + MAX_STATE_OF_A_LAYER * scenario.layers


@laws
@given(scenarios(), st.sets(st.integers(0, 2**63 - 1), min_size=40, max_size=120))
def test_no_step_makes_a_detector_raise(scenario: Scenario, steps: set[int]) -> None:
    stream = [replace(sample, step=step) for sample, step in zip(samples_of(scenario), sorted(steps), strict=False)]
    told = Told(stream)
    assert DetectorSuite.restore(told.suite.snapshot()).snapshot() == told.suite.snapshot()


@laws
@given(scenarios(is_quiet=True))
def test_nothing_is_said_of_a_quiet_run_whatever_is_logged_of_it(scenario: Scenario) -> None:
    assert Told(samples_of(scenario)).kinds == {}


@laws
@given(
    scenarios(is_quiet=True),
    st.lists(st.sampled_from([*samples_of(Scenario())[0].scalars, "layers"]), min_size=1, unique=True),
    st.sampled_from(BAD),
    st.integers(0, 1000),
)
def test_values_that_are_not_finite_are_no_sign_of_anything_else(
    scenario: Scenario, names: list[str], value: float, seed: int
) -> None:
    told = Told(spoiled(samples_of(scenario), names, [value], seed))
    may_be_told = NOT_FINITE if {"loss", "grad_norm"} & set(names) else set()
    assert told.kinds.keys() <= may_be_told


@laws
@given(scenarios(), st.integers(0, 1000))
def test_missing_layers_do_not_change_what_is_read_from_the_loss(scenario: Scenario, seed: int) -> None:
    stream = samples_of(scenario)
    random = np.random.default_rng(seed)
    thinned = [one if random.random() < 0.5 else replace(one, layout=None, block=None) for one in stream]
    left, right = Told(stream).states, Told(thinned).states
    assert [name for name in READS_THE_LOSS if left[name] != right[name]] == []


@laws
@given(scenarios())
def test_curvature_does_not_change_what_is_read_from_the_loss(scenario: Scenario) -> None:
    names = ("lambda_max", "lambda_grad", "lambda_step", "mode_loss", "mode_growth", "mode_alternation")
    stream = samples_of(scenario)
    without = [
        replace(one, scalars={name: one.scalars[name] for name in one.scalars if name not in names}) for one in stream
    ]
    left, right = Told(stream).states, Told(without).states
    same = (*READS_THE_LOSS, "nonfinite", "eps_floor", "gradient_explosion")
    assert [name for name in same if left[name] != right[name]] == []


@laws
@given(scenarios(), scenarios(), st.integers(1, 3))
def test_a_new_attempt_is_judged_like_a_new_run(first: Scenario, second: Scenario, attempt: int) -> None:
    again = [replace(sample, attempt=attempt) for sample in samples_of(second)]
    assert Told(again, Told(samples_of(first)).suite).states == Told(again).states


@laws
@given(scenarios(), st.data())
def test_late_records_and_steps_seen_before_change_nothing(scenario: Scenario, data: st.DataObject) -> None:
    stream = samples_of(scenario)
    at = data.draw(st.integers(1, len(stream) - 1), label="at")
    told = Told(stream[:at])
    before = told.suite.snapshot()
    late = [replace(sample, is_late=True, scalars={**sample.scalars, "loss": 1e6}) for sample in stream[:at]]
    assert all(verdict.events == () for verdict in Told(late, told.suite).verdicts)
    assert told.suite.snapshot() == before


@laws
@given(scenarios(), st.integers(1, 10**9))
def test_the_number_of_the_first_step_does_not_matter(scenario: Scenario, offset: int) -> None:
    stream = samples_of(scenario)
    left = Told(stream).verdicts
    right = Told([replace(sample, step=sample.step + offset) for sample in stream]).verdicts
    for one, other in zip(left, right, strict=True):
        assert (one.stage, one.stage_reason, one.stability_ratio) == (
            other.stage,
            other.stage_reason,
            other.stability_ratio,
        )
        assert [(f.kind, f.level, f.cause, f.step + offset) for f in one.findings] == [
            (f.kind, f.level, f.cause, f.step) for f in other.findings
        ]
        assert [(e.kind, e.step + offset) for e in one.events] == [(e.kind, e.step) for e in other.events]


def with_other_names(sample: Sample) -> Sample:
    if sample.layout is None:
        return sample
    layers = tuple(f"renamed/{name}" for name in sample.layout.layers)
    return replace(sample, layout=replace(sample.layout, id=7, layers=layers))


@laws
@given(scenarios())
def test_names_of_layers_do_not_matter(scenario: Scenario) -> None:
    stream = samples_of(scenario)
    renamed = [*stream[: len(stream) // 2], *map(with_other_names, stream[len(stream) // 2 :])]
    left, right = Told(stream).verdicts, Told(renamed).verdicts
    for one, other in zip(left, right, strict=True):
        assert one.stage == other.stage
        assert [(f.kind, f.level, f.step, f.cause, f.predicted_step) for f in one.findings] == [
            (f.kind, f.level, f.step, f.cause, f.predicted_step) for f in other.findings
        ]


def _factors(sample: Sample) -> NDArray[np.float32]:
    """Return 30 for each statistic that is a magnitude; a share or a ratio that is larger would say something else."""
    names = () if sample.layout is None else sample.layout.statistics
    return np.array([30.0 if KNOWN[name].kind == "magnitude" else 1.0 for name in names], np.float32)


@laws
@given(scenarios(is_quiet=True), st.integers(0, 4), st.floats(0.2, 0.9), st.sampled_from(STATISTICS))
def test_other_layers_and_statistics_are_no_sign_of_anything(
    scenario: Scenario, layers: int, at: float, statistics: tuple[str, ...]
) -> None:
    before = samples_of(scenario)
    after = samples_of(dataclasses.replace(scenario, layers=layers, statistics=statistics, relayout_at=0.0))
    cut = int(at * len(before))
    if layers != scenario.layers:  # as when layers that were frozen get gradients
        after = [replace(one, block=None if one.block is None else one.block * _factors(one)) for one in after]
    assert Told([*before[:cut], *after[cut:]]).kinds == {}


@pytest.mark.parametrize("layers", [0, 3, 300])
def test_a_snapshot_has_a_bound_however_long_the_run_is(layers: int) -> None:
    told, largest = Told([]), 0
    for number in range(8):
        episodes = tuple(Episode(kind=kind, at=0.1 + 0.08 * at, size=4.0) for at, kind in enumerate(sorted(EPISODES)))
        stream = samples_of(
            Scenario(records=300, layers=layers, seed=number, episodes=episodes, first_step=300 * number)
        )
        told = Told(stream, told.suite)
        largest = max(largest, len(told.suite.snapshot()))
    assert largest < MAX_STATE + MAX_STATE_OF_A_LAYER * layers


def test_a_record_without_layers_is_of_the_same_optimizer() -> None:
    layers, *others = signals_of(samples_of(Scenario(measured_every=16)))[:5]
    assert {reading.optimizer for reading in others} == {layers.optimizer} != {None}


def test_a_limit_that_is_missing_at_a_step_keeps_its_relation_to_the_learning_rate() -> None:
    stream = samples_of(Scenario())
    bare = {name: value for name, value in stream[50].scalars.items() if name != "stability_limit"}
    readings = signals_of([*stream[:50], replace(stream[50], scalars={**bare, "lr": 0.02})])
    assert readings[49].limit == pytest.approx(3.8 / 0.01)
    assert readings[50].limit == pytest.approx(3.8 / 0.02)


def test_a_gradient_norm_that_is_not_finite_at_a_step_is_not_replaced_by_that_of_the_layers() -> None:
    stream = samples_of(Scenario())
    broken = replace(stream[50], scalars={**stream[50].scalars, "grad_norm": math.inf})
    assert signals_of([*stream[:50], broken])[50].grad_norm is None
    never = [replace(one, scalars={**one.scalars, "grad_norm": math.nan}) for one in stream]
    assert signals_of(never)[50].grad_norm is not None


def test_the_largest_layer_keeps_its_share_of_the_norm_while_it_is_unknown() -> None:
    stream = samples_of(Scenario(logs_norm=False))
    block = stream[50].block
    assert block is not None
    block = block.copy()
    block[0] = np.nan
    readings = signals_of([*stream[:50], replace(stream[50], block=block)])
    assert readings[49].grad_norm is not None
    assert readings[50].grad_norm == pytest.approx(readings[49].grad_norm, rel=0.5)
    assert readings[50].decoupling is None
