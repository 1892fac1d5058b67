"""False predictions make the next ones quieter, and a prediction that comes true makes up for them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from server.alerts.lifecycle import AlertLifecycle
from server.detectors.detector_suite import DetectorSuite
from server.detectors.track_record import (
    MARGIN,
    MAX_MISSES,
    MAX_WATCHES,
    MIN_DUE,
    PAUSE,
    SILENT,
    TOLERATED,
    TrackRecord,
)
from server.models import Alert, AlertKind, AlertLevel, Finding, Sample
from tests.support import streams

WARNING = Finding(
    kind=AlertKind.SPIKE_PREDICTED, level=AlertLevel.WARNING, step=1, title="Spike predicted soon", message="Why."
)


def pretend(record: TrackRecord, claims: int, *, true: bool = False) -> None:
    """Add claims of ten steps each, each followed by a spike after fifty steps if they are `true`."""
    for _ in range(claims):
        start = record.last_step + 1
        for step in range(start, start + 2 * MIN_DUE):
            came = AlertLevel.WARNING if true and step == start + 50 else None
            record.update(step, AlertLevel.CRITICAL if step < start + 10 else None, due=None, spike=came)


def predictions(samples: Iterable[Sample], suite: DetectorSuite | None = None) -> list[Alert]:
    """Return the last form of each alert that predicted a spike at level warning or above."""
    suite, lifecycle = suite or DetectorSuite(), AlertLifecycle("run")
    latest: dict[str, Alert] = {}
    for sample in samples:
        latest |= {alert.id: alert for alert in lifecycle.apply(suite.update(sample), sample.time, sample.attempt)}
    return [a for a in latest.values() if a.kind == AlertKind.SPIKE_PREDICTED and a.level != AlertLevel.WATCH]


def later(samples: Iterable[Sample], steps: int) -> list[Sample]:
    return [replace(one, step=one.step + steps, time=one.time + steps) for one in samples]


def small(samples: Iterable[Sample]) -> list[Sample]:
    """Return the same stream with a loss so small that what is predicted would be no ripple, which would be a watch."""
    return [replace(one, scalars={**one.scalars, "loss": 0.01 * one.scalars["loss"]}) for one in samples]


def test_claims_that_never_come_are_held_at_watch_and_then_silenced() -> None:
    record = TrackRecord()
    pretend(record, TOLERATED - 1)
    assert record.tempered(WARNING) is not None
    assert not record.is_tempered
    pretend(record, 1)
    held = record.tempered(WARNING)
    assert held is not None
    assert (held.level, held.title) == (AlertLevel.WATCH, "Spike possible soon")
    assert held.evidence["false_alarms_before"] == TOLERATED
    while record.claims.misses < SILENT:
        pretend(record, 1)
    assert record.tempered(WARNING) is None


def test_each_pause_is_twice_the_one_before_up_to_a_bound() -> None:
    record = TrackRecord()
    loud = []
    for step in range(1, 60_000):
        before = record.claims.misses
        record.update(step, AlertLevel.WARNING, due=None, spike=None)
        if record.claims.misses > before:
            loud.append(step)
    pauses = [late - early for early, late in zip(loud[TOLERATED - 1 :], loud[TOLERATED:], strict=False)]
    assert all(PAUSE * 2**n <= pause <= PAUSE * 2**n + 2 * (MIN_DUE + MARGIN + 1) for n, pause in enumerate(pauses))
    assert len(loud) == MAX_MISSES
    assert record.claims.misses == MAX_MISSES


def test_a_claim_that_comes_true_ends_the_pause_reported_or_not() -> None:
    record = TrackRecord()
    while record.claims.misses < SILENT:
        pretend(record, 1)
    assert record.tempered(WARNING) is None
    pretend(record, 1, true=True)
    reported = record.tempered(WARNING)
    assert reported is not None
    assert (reported.level, reported.evidence["false_alarms_before"]) == (AlertLevel.WARNING, SILENT // 2)
    while record.claims.misses:
        pretend(record, 1, true=True)
    assert record.tempered(WARNING) == WARNING
    assert record.demand == 0


def test_a_spike_that_was_not_predicted_restores_nothing() -> None:
    record = TrackRecord()
    pretend(record, TOLERATED)
    record.update(record.last_step + 1, None, due=None, spike=AlertLevel.CRITICAL)
    assert record.claims.misses == TOLERATED


def test_a_small_spike_settles_a_claim_and_counts_for_nothing() -> None:
    record = TrackRecord()
    pretend(record, 1)
    record.update(1_001, AlertLevel.WARNING, due=None, spike=None)
    record.update(1_010, None, due=None, spike=AlertLevel.WATCH)
    record.update(1_010 + 2 * MIN_DUE, None, due=None, spike=None)
    assert record.claims.misses == 1


def test_watches_that_pass_are_silenced_and_count_for_nothing_else() -> None:
    record = TrackRecord()
    watch = replace(WARNING, level=AlertLevel.WATCH)
    reported = []
    for step in range(1, 5_000):
        record.update(step, AlertLevel.WATCH if step % 50 < 25 else "", due=None, spike=None)
        if step % 50 == 0:
            reported.append(record.tempered(watch) is not None)
    assert all(reported[: MAX_WATCHES - 1])
    assert sum(reported) <= MAX_WATCHES + 5
    assert record.tempered(WARNING) == WARNING


def test_a_claim_is_waited_for_until_its_own_forecast() -> None:
    record = TrackRecord()
    record.update(1, AlertLevel.WARNING, due=400, spike=None)
    record.update(400 + MARGIN - 1, None, due=None, spike=None)
    assert record.claims.misses == 0
    record.update(400 + MARGIN, None, due=None, spike=None)
    assert record.claims.misses == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_raises_few_false_alarms_and_not_for_ever(seed: int) -> None:
    alerts = predictions(small(streams.restless(4_000, seed)))
    assert 1 <= len(alerts) <= TOLERATED + 5  # pauses of 250, 500, 1,000 and 2,000 steps
    assert len([alert for alert in alerts if alert.step > 2_000]) <= 2


def test_a_real_build_up_is_predicted_after_false_alarms() -> None:
    suite = DetectorSuite()
    predictions(streams.restless(1_000, 1), suite)
    rising = list(streams.exponential(start=260, rate=0.1, decoupling=1e-3, steps=330))
    first = predictions(later(rising, 1_000), suite)
    second = predictions(later(rising, 1_330), suite)
    assert [alert.outcome is not None and alert.outcome.result != "false" for alert in second[-1:]] == [True], first


def test_false_claims_and_their_pause_outlive_an_attempt() -> None:
    record = TrackRecord()
    pretend(record, TOLERATED)
    left = record.claims.quiet_until - record.last_step
    record.renew()
    assert (record.claims.misses, record.claims.quiet_until, record.is_tempered) == (TOLERATED, left, True)

    samples = small(streams.restless(1_400, 0))
    suite = DetectorSuite()
    first = predictions(samples, suite)
    again = [replace(sample, attempt=1) for sample in samples]
    assert len(predictions(again, suite)) < len(first)
