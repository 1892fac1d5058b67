"""The columns of the fleet page, sample by sample."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from server.models import Sample, Stage, Verdict
from server.pipeline.progress import SPARKLINE_BUCKETS, RunProgress


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
