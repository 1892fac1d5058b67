"""The columns of the fleet page, sample by sample."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from client_sdk.vocabulary import Condition
from server.alerts.lifecycle import AlertLifecycle
from server.models import Sample, Stage, Verdict
from server.pipeline.detector_state import DetectorState
from server.pipeline.progress import SPARKLINE_BUCKETS, RunProgress
from server.rule import Rule


def feed(progress: RunProgress, step: int, loss: float, time: float = 0.0, attempt: int = 0) -> None:
    sample = Sample(step=step, time=time, scalars={"loss": loss}, attempt=attempt)
    progress.update(sample, Verdict(step=step, stage=Stage.STABLE, stability_ratio=None))


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=200, unique=True), st.data())
def test_the_sparkline_shows_the_highest_spike_in_few_points(steps: list[int], data: st.DataObject) -> None:
    progress = RunProgress()
    spike = data.draw(st.sampled_from(steps))
    for step in sorted(steps):
        feed(progress, step, 99.0 if step == spike else 1.0)
    sparkline = progress.progress().sparkline
    assert sparkline is not None
    assert len(sparkline["max"]) <= SPARKLINE_BUCKETS
    assert max(sparkline["max"]) == 99.0


def test_a_loss_that_is_not_finite_is_a_gap() -> None:
    progress = RunProgress()
    for step, loss in enumerate([1.0, math.nan, 2.0]):
        feed(progress, step, loss)
    found = progress.progress()
    assert found.sparkline is not None
    assert found.sparkline["max"] == [1.0, None, 2.0]
    assert found.loss == 2.0


def test_a_step_back_takes_the_later_losses_with_it() -> None:
    progress = RunProgress()
    for step in range(10):
        feed(progress, step, 50.0)
    feed(progress, 4, 1.0, attempt=1)
    found = progress.progress().sparkline
    assert found is not None
    assert found["max"] == [50.0] * 4 + [1.0]


def test_the_rate_is_that_of_the_last_seconds() -> None:
    progress = RunProgress()
    for step in range(100):
        feed(progress, step, 1.0, time=float(step))
    for step in range(100, 2_000):
        feed(progress, step, 1.0, time=100 + (step - 100) / 50)
    rate = progress.progress().step_rate
    assert rate is not None
    assert 45 < rate < 51


def test_clocks_that_stand_still_or_go_back_give_no_rate_and_no_harm() -> None:
    progress = RunProgress()
    for step, time in enumerate([5.0, 5.0, 4.0, math.nan, math.inf]):
        feed(progress, step, 1.0, time=time)
    assert progress.progress().step_rate is None


def test_progress_goes_on_from_its_snapshot() -> None:
    whole, part = RunProgress(), RunProgress()
    for step in range(300):
        feed(whole, step, math.sin(step), time=step / 10)
        feed(part, step, math.sin(step), time=step / 10)
        if step % 50 == 0:
            part = RunProgress.restore(part.snapshot())
    assert part.progress() == whole.progress()


def test_a_late_loss_is_not_the_present_one() -> None:
    progress = RunProgress()
    for step in range(100):
        feed(progress, step, 1.0, time=float(step))
    late = Sample(step=3, time=200.0, scalars={"loss": 9.0, "lr": 5.0}, is_late=True)
    before = progress.progress()
    progress.update(late, Verdict(step=99, stage=Stage.STABLE, stability_ratio=None))
    assert progress.progress() == before


def test_detectors_and_rules_go_on_after_a_late_record() -> None:
    state = DetectorState(rank=0, alerts=AlertLifecycle("run"))
    rule = Rule(id="high", name="Validation is high", scalar="val_loss", condition=Condition.ABOVE, value=2.0)
    state.rules.replace_rules((rule,), "1")
    other = DetectorState(rank=0, alerts=AlertLifecycle("run"))
    for step in range(100):
        for one in (state, other):
            one.update(Sample(step=step, time=float(step), scalars={"loss": 1.0 + step % 3}), 0.0)
    state.update(Sample(step=2, time=100.0, scalars={"val_loss": 3.0}, is_late=True), 0.0)
    assert state.suite.snapshot() == other.suite.snapshot()
    (alert,) = state.changed.values()
    assert (alert.kind, alert.step, alert.attempt) == ("custom-rule", 99, 0)
