from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from server.alerts.lifecycle import AlertLifecycle
from server.detectors.detector_suite import DetectorSuite
from server.models import Alert, AlertKind, AlertLevel, Cause, Finding, PredictedStep, Stage, Verdict
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


class Teller:
    """Applies findings step after step and keeps what was told."""

    def __init__(self) -> None:
        self.book = AlertLifecycle(RUN)
        self.step = 0
        self.told: list[Alert] = []

    def until(self, step: int, *findings: Finding) -> list[Alert]:
        """Hold these findings up to and with `step`."""
        new: list[Alert] = []
        while self.step < step:
            self.step += 1
            new += self.book.apply(_verdict(self.step, findings), time=1000.0 + self.step)
        self.told += new
        return new


def _verdict(step: int, findings: Sequence[Finding]) -> Verdict:
    return Verdict(step=step, stage=Stage.STABLE, stability_ratio=None, findings=tuple(findings))


@pytest.fixture
def teller() -> Teller:
    return Teller()


@pytest.mark.parametrize(("onset", "result"), [(75, "early"), (95, "hit"), (110, "hit"), (111, "late")])
def test_prediction_is_settled_by_the_spike_that_comes(teller: Teller, onset: int, result: str) -> None:
    teller.until(50)
    opened = teller.until(onset, predicted(100))[0]
    settled, named = teller.until(onset + 1, spike(onset))
    assert (settled.id, settled.state) == (opened.id, "resolved")
    assert settled.outcome is not None
    assert (settled.outcome.result, settled.outcome.step, settled.outcome.lead) == (result, onset, onset - 51)
    assert settled.closed_at == 1000.0 + onset + 1
    assert named.evidence["prediction_id"] == opened.id
    assert f"predicted at step 51: lead {onset - 51} steps" in named.message


def test_prediction_that_never_comes_true_is_false(teller: Teller) -> None:
    teller.until(60, predicted(100))
    assert teller.until(129) == []
    (closed,) = teller.until(200)
    assert closed.outcome is not None
    assert (closed.outcome.result, closed.outcome.step, closed.outcome.lead) == ("false", None, None)
    assert closed.updated_step == 130
    assert "did not come by step 130" in closed.message


def test_a_watch_that_passes_promised_nothing(teller: Teller) -> None:
    teller.until(30, predicted(100, AlertLevel.WATCH))
    (closed,) = teller.until(80)
    assert (closed.state, closed.outcome) == ("resolved", None)


def test_prediction_is_held_against_its_first_date(teller: Teller) -> None:
    teller.until(20, predicted(100, AlertLevel.WATCH))
    told = teller.until(60, predicted(150))
    assert told[0].evidence["warned_at_step"] == 21
    settled = teller.until(105, spike(104))[0]
    assert settled.first_predicted_step == PredictedStep(low=90, best=100, high=110)
    assert settled.predicted_step == PredictedStep(low=140, best=150, high=160)
    assert settled.outcome is not None
    assert (settled.outcome.result, settled.outcome.lead) == ("hit", 103)


def test_one_incident_is_one_alert_and_tells_only_what_is_new(teller: Teller) -> None:
    told = teller.until(49, predicted(100))
    assert len(told) == 1
    assert teller.until(55, predicted(102)) == teller.told[1:]
    assert len(teller.told) == 2  # refreshed after 50 steps, not for two steps of difference
    moved = teller.until(61, predicted(120))
    assert [alert.predicted_step and alert.predicted_step.best for alert in moved] == [120]
    escalated = teller.until(62, predicted(120, AlertLevel.CRITICAL))
    assert [alert.level for alert in escalated] == ["critical"]
    assert teller.until(70, predicted(120)) == []  # never less than the highest level it reached
    recaused = teller.until(71, predicted(120, cause=Cause.LEARNING_RATE))
    assert [alert.cause for alert in recaused] == ["learning-rate"]
    assert len({alert.id for alert in teller.told}) == 1


def test_an_overdue_date_is_told_once(teller: Teller) -> None:
    teller.until(5, predicted(30))
    told = [alert for due in range(7, 60) for alert in teller.until(due - 1, predicted(due, width=0))]
    assert len(told) <= 2  # the date that moved to the present, and the refresh after 50 steps


def test_a_finding_that_comes_back_soon_belongs_to_the_same_incident(teller: Teller) -> None:
    teller.until(10, spike(5))
    teller.until(25)
    teller.until(30, spike(26))
    (closed,) = teller.until(80)
    assert closed.updated_step == 50
    assert len({alert.id for alert in teller.told}) == 1
    (second,) = teller.until(81, spike(81))
    assert second.id != closed.id


def test_no_prediction_opens_while_the_spike_is_there(teller: Teller) -> None:
    told = teller.until(10, spike(5), predicted(30))
    assert [alert.kind for alert in told] == ["spike"]


def test_loss_that_is_no_number_settles_a_prediction(teller: Teller) -> None:
    teller.until(95, predicted(100))
    broken = Finding(kind=AlertKind.NONFINITE, level=AlertLevel.CRITICAL, step=96, title="NaN", message="NaN.")
    settled = teller.until(96, broken)[0]
    assert settled.outcome is not None
    assert settled.outcome.result == "hit"


def test_a_new_attempt_closes_what_was_open(teller: Teller) -> None:
    teller.until(20, predicted(100))
    told = teller.book.apply(_verdict(5, [predicted(60)]), time=2000.0, attempt=1)
    assert [(alert.state, alert.attempt) for alert in told] == [("resolved", 0), ("open", 1)]
    assert told[0].id != told[1].id
    assert told[0].outcome is None


def test_acknowledged_alert_stays_so_while_it_changes(teller: Teller) -> None:
    (opened,) = teller.until(1, predicted(100))
    acknowledged = teller.book.acknowledge(opened.id)
    assert acknowledged is not None
    assert acknowledged.state == "acknowledged"
    (changed,) = teller.until(10, predicted(150))
    assert changed.state == "acknowledged"
    assert teller.book.acknowledge("unknown") is None


def test_silence_holds_until_its_time(teller: Teller) -> None:
    (opened,) = teller.until(1, predicted(100))
    assert teller.book.silence(opened.id, until=5000.0) == opened
    assert teller.book.is_silenced(opened.id, 4999.0)
    assert not teller.book.is_silenced(opened.id, 5000.0)
    assert teller.book.silence("unknown", until=1.0) is None


def test_end_of_the_run_closes_everything_without_a_result(teller: Teller) -> None:
    teller.until(20, predicted(100))
    (closed,) = teller.book.close_all(time=3000.0)
    assert (closed.state, closed.closed_at, closed.outcome) == ("resolved", 3000.0, None)
    assert teller.book.open == ()


def test_replay_after_restore_gives_identical_alerts() -> None:
    samples = list(streams.exponential(start=100, rate=0.15, decoupling=1e-6, steps=220))
    monitor, book = DetectorSuite(), AlertLifecycle(RUN)
    whole = [alert for s in samples for alert in book.apply(monitor.update(s), s.time)]
    assert {alert.kind for alert in whole} >= {"spike-predicted", "spike"}
    for cut in (50, 105, 120, 150):
        monitor, book = DetectorSuite(), AlertLifecycle(RUN)
        parts = [alert for s in samples[:cut] for alert in book.apply(monitor.update(s), s.time)]
        monitor, book = DetectorSuite.restore(monitor.snapshot()), AlertLifecycle.restore(book.snapshot())
        parts += [alert for s in samples[cut:] for alert in book.apply(monitor.update(s), s.time)]
        assert parts == whole


def test_runs_do_not_share_alert_ids() -> None:
    finding = _verdict(1, [predicted(100)])
    assert AlertLifecycle("a").apply(finding, 0.0)[0].id != AlertLifecycle("b").apply(finding, 0.0)[0].id


def test_snapshot_of_something_else_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        AlertLifecycle.restore(b"\x93nothing")
