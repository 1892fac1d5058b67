"""Measures over runs: what counts in each, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from server.evaluation.alarms import Alarm, Height, Replayed, rising
from server.evaluation.measures import MEASURES, draws, measure
from server.evaluation.scores import RunScore, score
from server.evaluation.truth import TrueEvent, Truth
from server.models import Cause, PredictedStep


def truth(*onsets: int, cause: str = "adam-preconditioner", rise: float | None = 4.0, steps: int = 1_000) -> Truth:
    events = tuple(
        TrueEvent(
            first=onset - 100,
            onset=onset,
            peak=onset + 5,
            end=onset + 10,
            rise=rise,
            causes=(Cause.STALE_SECOND_MOMENT,),
        )
        for onset in onsets
    )
    clean = set(range(11, steps))
    for event in events:
        clean -= set(range(event.first, event.end + 21))
    return Truth(
        name="run",
        cause=cause,
        family="nets",
        batches="full",
        is_swell=False,
        steps=tuple(range(1, steps + 1)),
        events=events,
        clean=frozenset(clean),
    )


def told(run: Truth, *alarms: Alarm) -> RunScore:
    return score(run, Replayed(alarms=alarms))


def value(name: str, *runs: RunScore) -> float | None:
    return measure(MEASURES[name], runs).value


def alarm(step: int, low: int, best: int, high: int, height: float | None = None) -> Alarm:
    expected = None if height is None else Height(low=height / 3, best=height, high=3 * height)
    return Alarm(step=step, predicted=PredictedStep(low=low, best=best, high=high), height=expected)


def test_an_early_alarm_is_judged_by_its_own_forecast() -> None:
    run = told(truth(500), alarm(460, 480, 490, 530, height=2.0), alarm(498, 499, 500, 501, height=400.0))
    assert value("early", run) == 1
    assert value("lead", run) == 40
    assert value("peak", run) == 45
    assert value("band", run) == 1
    assert value("width", run) == pytest.approx(50 / 40)
    assert value("narrow", run) == 1
    assert value("date", run) == 1
    assert value("height", run) == 1, "the rise of 4 is within three times the forecast of 2"


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (alarm(480, 481, 489, 600), {"band": 1.0, "narrow": 0.0, "date": 0.0}),
        (alarm(480, 481, 490, 505), {"band": 1.0, "narrow": 1.0, "date": 1.0}),
        (alarm(480, 510, 520, 530), {"band": 0.0, "narrow": 0.0, "date": 1.0}),
        (alarm(480, 510, 521, 530), {"band": 0.0, "narrow": 0.0, "date": 0.0}),
    ],
    ids=["wide", "right", "late", "later"],
)
def test_a_range_and_a_date_are_right_or_wrong_apart(predicted: Alarm, expected: dict[str, float]) -> None:
    run = told(truth(500), predicted)
    assert {name: value(name, run) for name in expected} == expected


@pytest.mark.parametrize(("rise", "right"), [(1.0, 0.0), (3.4, 1.0), (29.0, 1.0), (31.0, 0.0), (None, None)])
def test_a_height_is_right_within_a_factor_of_three(rise: float | None, right: float | None) -> None:
    assert value("height", told(truth(500, rise=rise), alarm(480, 490, 500, 510, height=10.0))) == right


def test_an_alarm_without_a_forecast_is_counted_as_such() -> None:
    run = told(truth(500), Alarm(step=480))
    assert (value("dated", run), value("sized", run), value("band", run), value("date", run)) == (0, 0, None, None)


def test_alarms_far_from_spikes_are_false_and_those_between_onset_and_peak_useful() -> None:
    run = told(truth(500), Alarm(step=200), Alarm(step=502), Alarm(step=515))
    assert run.false == (200,)
    assert value("precision", run) == 0.5
    assert value("early", run) == 0
    assert value("clean", run) == pytest.approx(1_000 / run.clean_steps)


def test_healthy_runs_and_injected_faults_count_in_measures_of_their_own() -> None:
    healthy = told(truth(cause="none"), Alarm(step=300))
    faulty = told(truth(500, cause="data"), Alarm(step=480))
    assert value("healthy", healthy, faulty) == pytest.approx(1_000 / healthy.clean_steps)
    assert value("faults", healthy, faulty) == 1
    assert value("early", healthy, faulty) is None


def test_an_interval_holds_the_value_and_shrinks_with_the_number_of_runs() -> None:
    def interval(runs: int) -> tuple[float, float, float]:
        found = [told(truth(500), *([Alarm(step=480)] if number % 2 else [])) for number in range(runs)]
        estimate = measure(MEASURES["early"], found, draws(runs))
        assert estimate.value is not None
        assert estimate.low is not None
        assert estimate.high is not None
        return estimate.value, estimate.low, estimate.high

    (few, low, high), (many, lower, higher) = interval(10), interval(160)
    assert few == many == 0.5
    assert low < lower < 0.5 < higher < high
    # The standard error of a share of 160 runs is 0.04, so that its interval is 0.08 to either side.
    assert (lower, higher) == pytest.approx((0.42, 0.58), abs=0.02)


def test_an_interval_is_over_runs_and_not_over_spikes() -> None:
    onsets = range(150, 900, 150)
    silent = [told(truth(*onsets)) for _ in range(5)]
    heard = [told(truth(*onsets), *(Alarm(step=onset - 20) for onset in onsets)) for _ in range(5)]
    estimate = measure(MEASURES["early"], [*silent, *heard], draws(10))
    assert estimate.count == 50
    assert estimate.low is not None
    assert estimate.low <= 0.3, "ten runs that are all or nothing say little, although they have fifty spikes"


def test_a_median_is_drawn_by_the_weights_of_its_runs() -> None:
    runs = [told(truth(500), Alarm(step=500 - lead)) for lead in (5, 10, 20, 40, 80)]
    estimate = measure(MEASURES["lead"], runs, draws(5))
    assert (estimate.value, estimate.count) == (20, 5)
    assert estimate.low in (5, 10)
    assert estimate.high in (40, 80)
    assert measure(MEASURES["lead"], runs).low is None


def test_the_median_of_an_even_number_of_spikes_is_between_the_middle_ones_in_draws_too() -> None:
    run = told(truth(200, 500), Alarm(step=190), Alarm(step=470))
    estimate = measure(MEASURES["lead"], [run], draws(1))
    assert (estimate.value, estimate.low, estimate.high) == (20, 20, 20)


def test_a_rule_that_stays_true_alarms_every_hundred_steps_and_flickering_once() -> None:
    steps = range(1, 401)
    assert [one.step for one in rising(steps, [step >= 50 for step in steps])] == [50, 150, 250, 350]
    assert [one.step for one in rising(steps, [step in (50, 65, 80, 200) for step in steps])] == [50, 200]
    assert rising(steps, [step <= 10 for step in steps]) == ()


def test_draws_give_every_run_the_same_chance() -> None:
    weights = draws(4)
    assert weights.sum(axis=1).tolist() == [4] * len(weights)
    assert np.allclose(weights.mean(axis=0), 1, atol=0.1)
    assert draws(0).size == 0
