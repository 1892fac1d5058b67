"""The lifecycle of alerts, from the finding that opens one to its resolution."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from client_sdk.protocol import Forecast
from server.alerts.lifecycle import MAX_FORECASTS, AlertLifecycle
from server.detectors.detector_suite import DetectorSuite
from server.models import Alert, AlertKind, AlertLevel, Cause, Finding, Outcome, PredictedStep, Stage, Verdict
from server.notification import incident_of
from tests.support import streams

RUN = "run-1"


def predicted(
    best: int, level: AlertLevel = AlertLevel.WARNING, cause: Cause = Cause.STALE_SECOND_MOMENT, width: int = 10
) -> Finding:
    return Finding(
        kind=AlertKind.SPIKE_PREDICTED,
        level=level,
        step=0,
        title=f"Spike predicted at step {best}",
        message="Because.",
        cause=cause,
        predicted_step=PredictedStep(low=best - width, best=best, high=best + width),
        evidence={"stability_ratio": 1.1},
    )


def spike(onset: int) -> Finding:
    return Finding(
        kind=AlertKind.SPIKE, level=AlertLevel.WARNING, step=onset, title=f"Loss spike at step {onset}", message="Up."
    )


class Steps:
    """Applies findings step after step and keeps the reported alerts."""

    def __init__(self) -> None:
        self.lifecycle = AlertLifecycle(RUN)
        self.step = 0
        self.reported: list[Alert] = []

    def until(self, step: int, *findings: Finding) -> list[Alert]:
        """Hold these findings up to and including a step, and return the alerts that were reported."""
        new: list[Alert] = []
        while self.step < step:
            self.step += 1
            new += self.lifecycle.apply(_verdict(self.step, findings), time=1000.0 + self.step)
        self.reported += new
        return new


def _verdict(step: int, findings: Sequence[Finding], ratio: float | None = None) -> Verdict:
    return Verdict(step=step, stage=Stage.STABLE, stability_ratio=ratio, findings=tuple(findings))


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.mark.parametrize(("onset", "result"), [(75, "early"), (95, "hit"), (110, "hit"), (111, "late")])
def test_prediction_is_settled_by_the_spike_that_comes(steps: Steps, onset: int, result: str) -> None:
    steps.until(50)
    opened = steps.until(onset, predicted(100))[0]
    settled, named = steps.until(onset + 1, spike(onset))
    assert (settled.id, settled.state) == (opened.id, "resolved")
    assert settled.outcome is not None
    assert (settled.outcome.result, settled.outcome.step, settled.outcome.lead) == (result, onset, onset - 51)
    assert settled.closed_at == 1000.0 + onset + 1
    assert named.evidence["prediction_id"] == opened.id
    assert f"predicted at step 51: lead {onset - 51} steps" in named.message


def test_prediction_that_never_comes_true_is_false(steps: Steps) -> None:
    steps.until(60, predicted(100))
    assert steps.until(129) == []
    (closed,) = steps.until(200)
    assert closed.outcome is not None
    assert (closed.outcome.result, closed.outcome.step, closed.outcome.lead) == ("false", None, None)
    assert closed.updated_step == 130
    assert "did not come by step 130" in closed.message


@pytest.mark.parametrize(("ratio", "reason"), [(0.93, " λ_max fell back from 1.10 to 0.93 × the limit."), (1.2, "")])
def test_a_prediction_that_passes_says_why_where_the_curvature_shows_it(ratio: float, reason: str) -> None:
    lifecycle = AlertLifecycle(RUN)
    lifecycle.apply(_verdict(1, [predicted(40)], 1.1), time=1.0)
    told = [alert for step in range(2, 120) for alert in lifecycle.apply(_verdict(step, [], ratio), time=float(step))]
    assert told[-1].message.endswith(f"It did not come by step {told[-1].updated_step}.{reason}")


def test_a_watch_that_passes_has_no_result(steps: Steps) -> None:
    steps.until(30, predicted(100, AlertLevel.WATCH))
    (closed,) = steps.until(80)
    assert (closed.state, closed.outcome) == ("resolved", None)


def test_prediction_is_compared_to_the_forecast_that_was_sent_first(steps: Steps) -> None:
    steps.until(20, predicted(100, AlertLevel.WATCH))
    reported = steps.until(60, predicted(150))
    assert reported[0].evidence["warned_at_step"] == 21
    settled, named = steps.until(105, spike(104))
    assert settled.first_predicted_step == PredictedStep(low=90, best=100, high=110)
    assert settled.predicted_step == PredictedStep(low=140, best=150, high=160)
    assert settled.outcome == Outcome(result="early", step=104, lead=83, first_seen_lead=103)
    assert "lead 83 steps from the warning at step 21 (first signs at step 1, 103 steps before)" in settled.message
    assert named.evidence["predicted_at_step"] == 21
    assert named.evidence["first_seen_at_step"] == 1
    assert "predicted at step 21: lead 83 steps" in named.message


def test_forecasts_are_kept_as_they_were_reported(steps: Steps) -> None:
    steps.until(20, predicted(150, AlertLevel.WATCH))
    steps.until(60, predicted(100))
    steps.until(95, predicted(130, AlertLevel.CRITICAL))
    settled = steps.until(105, spike(104))[0]
    assert settled.forecasts == (
        Forecast(step=1, low=140, best=150, high=160, level="watch"),
        Forecast(step=21, low=90, best=100, high=110, level="warning"),
        Forecast(step=61, low=120, best=130, high=140, level="critical"),
    )
    assert settled.first_warned == settled.judged_forecast == settled.forecasts[1]
    assert settled.outcome == Outcome(result="hit", step=104, lead=83, first_seen_lead=103)


def test_a_spike_that_was_only_watched_has_no_lead(steps: Steps) -> None:
    steps.until(95, predicted(100, AlertLevel.WATCH))
    settled, named = steps.until(97, spike(96))
    assert settled.outcome == Outcome(result="hit", step=96, lead=None, first_seen_lead=95)
    assert "no warning was given (first signs at step 1, 95 steps before)" in settled.message
    assert "watched since step 1, without a warning" in named.message


def test_a_warning_after_the_onset_is_not_called_a_lead(steps: Steps) -> None:
    steps.until(95, predicted(100, AlertLevel.WATCH))
    steps.until(97, predicted(100))
    settled, named = steps.until(98, spike(94))
    assert settled.outcome == Outcome(result="hit", step=94, lead=-2, first_seen_lead=93)
    assert "the warning came only at step 96" in settled.message
    assert "The warning came only at step 96" in named.message


def test_a_long_path_of_forecasts_keeps_its_ends_and_its_turns(steps: Steps) -> None:
    steps.until(30, predicted(9_000, AlertLevel.WATCH))
    for number in range(1, 500):
        level = AlertLevel.WATCH if number < 250 else AlertLevel.WARNING
        [alert] = steps.until(30 + 6 * number, predicted(9_000 - 4_000 * (number % 2), level))[:1]
        assert len(alert.forecasts) <= MAX_FORECASTS
        assert alert.forecasts[0].step == 1
        assert alert.forecasts[-1].step > alert.updated_step - 6
    assert alert.evidence["warned_at_step"] == 25 + 6 * 250
    assert alert.first_warned is not None
    assert alert.first_warned.step == 25 + 6 * 250
    assert [forecast.step for forecast in alert.forecasts] == sorted(forecast.step for forecast in alert.forecasts)


def test_an_alert_of_a_version_without_a_path_is_judged_by_its_first_forecast(steps: Steps) -> None:
    steps.until(50, predicted(100))
    document = msgspec.msgpack.decode(steps.lifecycle.snapshot())
    for incident in document["incidents"].values():
        del incident["alert"]["forecasts"]
    lifecycle = AlertLifecycle.restore(msgspec.msgpack.encode(document))
    settled = lifecycle.apply(_verdict(96, [spike(95)]), time=2000.0)[0]
    assert settled.forecasts == ()
    assert settled.outcome == Outcome(result="hit", step=95, lead=94, first_seen_lead=94)


def test_one_incident_is_one_alert_and_reports_only_what_is_new(steps: Steps) -> None:
    reported = steps.until(49, predicted(100))
    assert len(reported) == 1
    assert steps.until(55, predicted(102)) == steps.reported[1:]
    assert len(steps.reported) == 2  # refreshed after 50 steps, not for two steps of difference
    moved = steps.until(61, predicted(120))
    assert [alert.predicted_step and alert.predicted_step.best for alert in moved] == [120]
    escalated = steps.until(62, predicted(120, AlertLevel.CRITICAL))
    assert [alert.level for alert in escalated] == ["critical"]
    assert steps.until(70, predicted(120)) == []  # never less than the highest level it reached
    recaused = steps.until(71, predicted(120, cause=Cause.LEARNING_RATE))
    assert [alert.cause for alert in recaused] == ["learning-rate"]
    assert len({alert.id for alert in steps.reported}) == 1


def test_an_overdue_forecast_is_reported_once(steps: Steps) -> None:
    steps.until(5, predicted(30))
    reported = [alert for due in range(7, 60) for alert in steps.until(due - 1, predicted(due, width=0))]
    assert len(reported) <= 2  # the forecast that moved to the present, and the refresh after 50 steps


def test_a_finding_that_comes_back_soon_belongs_to_the_same_incident(steps: Steps) -> None:
    steps.until(10, spike(5))
    steps.until(25)
    steps.until(30, spike(5))
    (closed,) = steps.until(80)
    assert closed.updated_step == 50
    assert len({alert.id for alert in steps.reported}) == 1
    (second,) = steps.until(81, spike(81))
    assert second.id != closed.id


def test_a_spike_that_began_after_the_last_one_was_over_is_another_alert(steps: Steps) -> None:
    steps.until(10, spike(5))
    steps.until(15)
    closed, second = steps.until(16, spike(16))
    assert (closed.state, closed.title) == ("resolved", "Loss spike at step 5")
    assert (second.state, second.title) == ("open", "Loss spike at step 16")
    assert second.id != closed.id


def test_a_spike_of_level_watch_settles_a_prediction_only_if_that_is_over(steps: Steps) -> None:
    watch = msgspec.structs.replace(spike(90), level=AlertLevel.WATCH)
    steps.until(90, predicted(100))
    assert [alert.kind for alert in steps.until(95, predicted(100), watch)] == ["spike"]
    (settled, *_) = steps.until(96, watch)
    assert (settled.kind, settled.state) == ("spike-predicted", "resolved")


def other(kind: AlertKind, onset: int) -> Finding:
    return Finding(kind=kind, level=AlertLevel.WARNING, step=onset, title=kind.value, message="Up.")


def test_alerts_about_one_step_are_one_incident(steps: Steps) -> None:
    [first] = steps.until(10, spike(10))
    [second] = steps.until(12, spike(10), other(AlertKind.BAD_BATCH, 10))
    assert incident_of(second) == incident_of(first) == first.id
    [third] = steps.until(20, spike(10), other(AlertKind.BAD_BATCH, 10), other(AlertKind.NONFINITE, 20))
    assert incident_of(third) == third.id


def test_what_settles_a_prediction_is_its_incident_whatever_it_is_called(steps: Steps) -> None:
    steps.until(95, predicted(100))
    settled, *named = steps.until(96, spike(95), other(AlertKind.BAD_BATCH, 95))
    assert {incident_of(alert) for alert in named} == {settled.id}


def test_a_divergence_belongs_to_an_earlier_spike_only_if_both_open_together(steps: Steps) -> None:
    [first, together] = steps.until(10, spike(10), other(AlertKind.DIVERGENCE, 4))
    assert incident_of(together) == first.id
    later = Steps()
    later.until(10, spike(10))
    [own] = later.until(30, spike(10), other(AlertKind.DIVERGENCE, 10))
    assert incident_of(own) == own.id


def test_no_prediction_opens_while_the_spike_is_there(steps: Steps) -> None:
    reported = steps.until(10, spike(5), predicted(30))
    assert [alert.kind for alert in reported] == ["spike"]


def test_loss_that_is_not_a_number_settles_a_prediction(steps: Steps) -> None:
    steps.until(95, predicted(100))
    broken = Finding(kind=AlertKind.NONFINITE, level=AlertLevel.CRITICAL, step=96, title="NaN", message="NaN.")
    settled = steps.until(96, broken)[0]
    assert settled.outcome is not None
    assert settled.outcome.result == "hit"


def test_a_new_attempt_closes_what_was_open(steps: Steps) -> None:
    steps.until(20, predicted(100))
    reported = steps.lifecycle.apply(_verdict(5, [predicted(60)]), time=2000.0, attempt=1)
    assert [(alert.state, alert.attempt) for alert in reported] == [("resolved", 0), ("open", 1)]
    assert reported[0].id != reported[1].id
    assert reported[0].outcome is None


def test_end_of_the_run_closes_everything_without_a_result(steps: Steps) -> None:
    steps.until(20, predicted(100))
    (closed,) = steps.lifecycle.end_run(time=3000.0)
    assert (closed.state, closed.closed_at, closed.outcome) == ("ended", 3000.0, None)
    assert closed.updated_step == 20
    assert closed.message == "Because. The run ended before it was over."
    assert steps.lifecycle.open == ()
    assert steps.lifecycle.end_run(time=4000.0) == []


def test_an_alert_whose_finding_has_passed_is_resolved_at_the_end(steps: Steps) -> None:
    steps.until(20, spike(5))
    steps.until(25)
    (closed,) = steps.lifecycle.end_run(time=3000.0)
    assert (closed.state, closed.message) == ("resolved", "Up.")


def test_an_ended_alert_is_open_again_when_the_run_goes_on(steps: Steps) -> None:
    (opened,) = steps.until(20, spike(5))
    (ended,) = steps.lifecycle.end_run(time=3000.0)
    steps.lifecycle = AlertLifecycle.restore(steps.lifecycle.snapshot())
    (again,) = steps.until(21, spike(5))
    assert (again.id, again.state, again.closed_at, again.message) == (opened.id, "open", None, "Up.")
    (resolved,) = steps.until(60)
    assert (resolved.id, resolved.state) == (ended.id, "resolved")


def test_an_ended_alert_stays_ended_when_training_goes_back(steps: Steps) -> None:
    steps.until(20, spike(5))
    steps.lifecycle.end_run(time=3000.0)
    assert steps.lifecycle.apply(_verdict(3, []), time=4000.0, attempt=1) == []
    assert steps.lifecycle.end_run(time=5000.0) == []


def test_replay_after_restore_gives_identical_alerts() -> None:
    samples = list(streams.exponential(start=100, rate=0.15, decoupling=1e-6, steps=220))
    suite, lifecycle = DetectorSuite(), AlertLifecycle(RUN)
    whole = [alert for s in samples for alert in lifecycle.apply(suite.update(s), s.time)]
    assert {alert.kind for alert in whole} >= {"spike-predicted", "spike"}
    for cut in (50, 105, 120, 150):
        suite, lifecycle = DetectorSuite(), AlertLifecycle(RUN)
        parts = [alert for s in samples[:cut] for alert in lifecycle.apply(suite.update(s), s.time)]
        suite, lifecycle = DetectorSuite.restore(suite.snapshot()), AlertLifecycle.restore(lifecycle.snapshot())
        parts += [alert for s in samples[cut:] for alert in lifecycle.apply(suite.update(s), s.time)]
        assert parts == whole


def test_runs_do_not_share_alert_ids() -> None:
    finding = _verdict(1, [predicted(100)])
    assert AlertLifecycle("a").apply(finding, 0.0)[0].id != AlertLifecycle("b").apply(finding, 0.0)[0].id


def test_snapshot_of_something_else_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        AlertLifecycle.restore(b"\x93nothing")
