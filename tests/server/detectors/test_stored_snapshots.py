"""Snapshots that servers before 0.1.0 stored: what is restored from them continues as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import pytest

from client_sdk.protocol import Alert
from server.alerts.lifecycle import AlertLifecycle
from server.detectors.detector_suite import DetectorSuite
from server.detectors.rule_evaluator import RuleEvaluator
from server.detectors.spike import MIN_LOSSES
from server.evaluation.recordings import read_recordings
from server.models import EventKind, Sample, Verdict
from tests.server.detectors.test_rule_evaluator import ALL_KINDS
from tests.support import streams

DATA: Final = Path(__file__).parents[2] / "data"


class Stored(msgspec.Struct, frozen=True):
    """A snapshot that was taken before the sample at a position of a stream."""

    program: str
    stream: str
    position: int
    snapshot: bytes


STORED: Final = msgspec.msgpack.decode((DATA / "snapshots-version-1.msgpack").read_bytes(), type=list[Stored])


def each(program: str) -> pytest.MarkDecorator:
    """Parametrize a test with the stored snapshots of one program."""
    chosen = [stored for stored in STORED if stored.program == program]
    return pytest.mark.parametrize("stored", chosen, ids=[f"{one.stream}-{one.position}" for one in chosen])


DATED_ANEW: Final = {"exponential"}
"""Streams whose spike the version before dated otherwise, so that it told of the same alerts at other steps."""
WARNED_LATER: Final = {"tanh-net"}
"""Streams whose spike the version before warned of while its date was more than 25 steps away, where it is a watch."""
LEARNT: Final = 100
"""Number of samples after which a restored detector of spikes has learnt the level of the loss anew."""


def dates(verdict: Verdict) -> list[object]:
    """Return the predicted steps of a verdict with the layers that lead to them."""
    found = [finding for finding in verdict.findings if finding.kind == "spike-predicted"]
    return [(finding.step, finding.predicted_step, finding.layers) for finding in found]


def forecasts(verdict: Verdict) -> str:
    """Return the predictions of a verdict without the expected height, which alone depends on that level."""
    return repr(
        [
            msgspec.structs.replace(
                finding,
                message=finding.message.partition(" The loss may rise")[0],
                evidence={key: value for key, value in finding.evidence.items() if "expected_rise" not in key},
            )
            for finding in verdict.findings
            if finding.kind == "spike-predicted"
        ]
    )


def told(verdict: Verdict) -> tuple[object, ...]:
    """Return what a verdict says, without what the stored snapshots could not know.

    A run that was called stable gets the news that it is not judged later, and the detector of outliers begins fresh.
    """
    events = [
        (event.step, event.kind)
        for event in verdict.events
        if event.detail.get("stage") != "not-judged" and event.kind != EventKind.LOSS_OUTLIER
    ]
    return verdict.stage, events, [(one.kind, one.level, one.step, one.title, one.cause) for one in verdict.findings]


def samples_of(stream: str) -> list[Sample]:
    """Return the samples of a recording or a synthetic stream by its name."""
    if stream == "spoiled":
        return list(streams.spoiled(streams.healthy(400, seed=2), seed=3))
    if stream == "exponential":
        return list(streams.exponential(start=100, rate=0.15, decoupling=1e-6, steps=220))
    return list(next(found for found in read_recordings(DATA) if found.name == stream).samples)


@each("detectors")
def test_a_stored_detector_suite_goes_on(stored: Stored) -> None:
    samples = samples_of(stored.stream)
    whole = streams.verdicts(samples)
    rest = streams.verdicts(samples[stored.position :], DetectorSuite.restore(stored.snapshot))
    learnt = stored.position + LEARNT
    assert [told(verdict) for verdict in rest[LEARNT:]] == [told(verdict) for verdict in whole[learnt:]]
    compared = dates if stored.stream in WARNED_LATER else forecasts
    assert list(map(compared, rest)) == list(map(compared, whole[stored.position :]))


@each("detectors")
def test_a_detector_suite_stores_what_it_stored_before(stored: Stored) -> None:
    suite = DetectorSuite()
    streams.verdicts(samples_of(stored.stream)[: stored.position], suite)
    now, before = content(suite.snapshot()), content(stored.snapshot)
    if stored.position < MIN_LOSSES:  # a run was called stable before there was evidence
        assert "not-judged" in repr(now.pop("stages"))
        assert "stable" in repr(before.pop("stages"))
    if stored.stream == "spoiled":
        for one in (now["signals"], before["signals"]):
            assert isinstance(one, dict)
            for key in OF_PARTLY_KNOWN_LAYERS:
                del one[key]
    assert repr(common(now, before)) == repr(common(before, now))
    jump, spike = now["jump"], before["spike"]
    assert repr(common(jump, spike)) == repr(common(spike, jump))


@each("rules")
def test_a_stored_rule_evaluator_goes_on(stored: Stored) -> None:
    samples = samples_of(stored.stream)
    whole = RuleEvaluator()
    whole.replace_rules(ALL_KINDS, "1")
    expected = [whole.update(sample, sample.time) for sample in samples]
    restored = RuleEvaluator.restore(stored.snapshot)
    rest = [restored.update(sample, sample.time) for sample in samples[stored.position :]]
    assert repr(rest) == repr(expected[stored.position :])
    assert any(result.findings for result in rest)


@each("alerts")
def test_a_stored_alert_lifecycle_goes_on(stored: Stored) -> None:
    suite, alerts = DetectorSuite(), AlertLifecycle("run-1")
    samples = samples_of(stored.stream)
    verdicts = [suite.update(sample) for sample in samples]
    expected = [alerts.apply(verdict, one.time) for verdict, one in zip(verdicts, samples, strict=True)]
    restored = AlertLifecycle.restore(stored.snapshot)
    at = stored.position
    rest = [restored.apply(verdict, one.time) for verdict, one in zip(verdicts[at:], samples[at:], strict=True)]
    if stored.stream not in DATED_ANEW:
        assert [list(map(essence, step)) for step in rest] == [list(map(essence, step)) for step in expected[at:]]
    ends = last_forms(expected)
    assert {key: ends[key] for key in last_forms(rest)} == last_forms(rest)
    assert any(rest)


def last_forms(steps: list[list[Alert]]) -> dict[str, tuple[object, ...]]:
    """Return the last form of each alert."""
    return {alert.id: essence(alert) for step in steps for alert in step}


def essence(alert: Alert) -> tuple[object, ...]:
    """Return what an alert says without its lead: the version before stored no path of forecasts to count it from."""
    return alert.id, alert.kind, alert.level, alert.state, alert.step, alert.layers, alert.cause, alert.closed_at


CHANGED: Final = {
    *("bad_batch", "causes", "cause", "findings", "stages", "spike", "divergence", "predictor"),
    *("due", "is_told", "is_watching"),
}
"""Keys whose content is another one since a bad batch is named later, since a lost loss is a stage of its own, since
spikes are found by another rule, since a forecast follows the loss that is held, and since a far date is a watch; the
rule of before is the detector of jumps."""


def common(one: object, other: object) -> object:
    """Return the part of one snapshot whose keys the other one has too: later versions add keys."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: common(one[key], other[key]) for key in one if key in other and key not in CHANGED}
    return one


OF_PARTLY_KNOWN_LAYERS: Final = ("decouplings", "fast", "grad_mean", "grads", "growth", "growth_mean")
"""Keys of the signals whose content is another one where some layers of a record are NaN, since these keep their share
of the gradient norm then."""
WORDS: Final = {"title", "message", "sentence", "advice"}
"""Texts for people, which may be worded anew."""


def content(snapshot: bytes) -> dict[str, object]:
    """Return the content of a snapshot, its keys sorted on all levels, without texts for people."""

    def ordered(value: object) -> object:
        if isinstance(value, dict):
            return {key: ordered(value[key]) for key in sorted(value) if key not in WORDS}
        return [ordered(one) for one in value] if isinstance(value, list) else value

    decoded = msgspec.msgpack.decode(snapshot, type=dict[str, object])
    return {key: ordered(decoded[key]) for key in sorted(decoded)}
