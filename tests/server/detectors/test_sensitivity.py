"""The one knob: what each of its steps does to a prediction."""

from __future__ import annotations

import pytest

from client_sdk.vocabulary import Sensitivity
from server.detectors.detector_suite import DetectorSuite
from server.detectors.height import RIPPLE
from server.detectors.sensitivity import FACTORS, factor_of, least_rise, weighed
from server.models import AlertKind, AlertLevel, Finding
from tests.support import streams

FEWER, USUAL, MORE = (factor_of(step) for step in Sensitivity)


def prediction(level: AlertLevel, rise: float | None, *, sign: str = "climb", misses: int = 0) -> Finding:
    evidence: dict[str, float | int | str | None] = {"sign": sign, "expected_rise": rise}
    if misses:
        evidence["false_alarms_before"] = misses
    word = "possible" if level is AlertLevel.WATCH else "predicted"
    return Finding(
        kind=AlertKind.SPIKE_PREDICTED,
        level=level,
        step=7,
        title=f"Spike {word} at step 9",
        message="It grows.",
        evidence=evidence,
    )


def test_every_step_of_the_knob_has_a_number_and_the_usual_one_is_that_of_live_runs() -> None:
    assert set(FACTORS) == set(Sensitivity)
    assert FEWER < USUAL == 1.0 < MORE
    assert least_rise(USUAL) == RIPPLE


@pytest.mark.parametrize(
    ("level", "rise", "sensitivity", "expected"),
    [
        (AlertLevel.WARNING, 0.5, USUAL, AlertLevel.WARNING),
        (AlertLevel.WARNING, 0.5, FEWER, AlertLevel.WATCH),
        (AlertLevel.CRITICAL, 0.5, FEWER, AlertLevel.WATCH),
        (AlertLevel.WARNING, 2.0, FEWER, AlertLevel.WARNING),
        (AlertLevel.WARNING, None, FEWER, AlertLevel.WARNING),
        (AlertLevel.WATCH, 0.15, USUAL, AlertLevel.WATCH),
        (AlertLevel.WATCH, 0.15, MORE, AlertLevel.WARNING),
        (AlertLevel.WATCH, 0.05, MORE, AlertLevel.WATCH),
        (AlertLevel.CRITICAL, 0.5, MORE, AlertLevel.CRITICAL),
    ],
)
def test_the_expected_rise_decides_the_level(
    level: AlertLevel, rise: float | None, sensitivity: float, expected: AlertLevel
) -> None:
    found = weighed(prediction(level, rise), sensitivity)
    assert found.level is expected
    assert ("possible" in found.title) is (expected is AlertLevel.WATCH)


def test_a_watch_without_growth_or_after_false_alarms_stays_a_watch() -> None:
    assert weighed(prediction(AlertLevel.WATCH, 5.0, sign="approach"), MORE).level is AlertLevel.WATCH
    assert weighed(prediction(AlertLevel.WATCH, 5.0, misses=3), MORE).level is AlertLevel.WATCH


def test_what_has_happened_is_reported_alike() -> None:
    spike = Finding(kind=AlertKind.SPIKE, level=AlertLevel.WARNING, step=7, title="Loss spike", message="It rose.")
    assert weighed(spike, FEWER) is spike
    assert weighed(spike, MORE) is spike


def test_a_suite_judges_by_its_sensitivity_and_the_usual_one_is_the_default() -> None:
    samples = list(streams.exponential(start=100, rate=0.2, decoupling=1e-6, steps=130))

    def levels(suite: DetectorSuite) -> list[tuple[int, str]]:
        found = []
        for sample in samples:
            verdict = suite.update(sample)
            found += [(verdict.step, finding.level.value) for finding in verdict.findings]
        return found

    usual = levels(DetectorSuite())
    assert usual
    assert levels(DetectorSuite(1.0)) == usual
    restored = DetectorSuite.restore(DetectorSuite(FEWER).snapshot())
    assert levels(restored) == usual, "a snapshot does not carry the sensitivity"
