"""Stretches of a run whose layer statistics were thinned: their begin, their end, and their saved state."""

from __future__ import annotations

import pytest

from client_sdk.protocol import STATISTICS_THINNED
from server.models import Event, Sample
from server.pipeline.thinned_span import MIN_COMPLETE, ThinnedSpan


def sample(step: int, *, thinned: bool, attempt: int = 0) -> Sample:
    scalars = {"loss": 1.0, **({STATISTICS_THINNED: 1.0} if thinned else {})}
    return Sample(step=step, time=float(step), scalars=scalars, attempt=attempt)


def told(span: ThinnedSpan, *samples: Sample) -> list[Event]:
    return [event for one in samples for event in span.update(one)]


def test_whole_records_in_between_do_not_end_a_stretch() -> None:
    span = ThinnedSpan()
    events = told(span, *(sample(step, thinned=step % 8 == 0) for step in range(8, 200)))
    assert [(event.kind, event.step) for event in events] == [("statistics-thinned", 8)]
    (end,) = span.end()
    assert (end.kind, end.step) == ("statistics-complete", 192)
    assert end.detail == {"from_step": 8, "to_step": 192, "records": 24}
    assert span.end() == ()


def test_many_whole_records_end_it_and_another_may_follow() -> None:
    span = ThinnedSpan()
    quiet = [sample(step, thinned=False) for step in range(4, 4 + MIN_COMPLETE)]
    again = sample(5_000, thinned=True)
    events = told(span, sample(3, thinned=True), *quiet, again)
    assert [event.kind for event in events] == ["statistics-thinned", "statistics-complete", "statistics-thinned"]
    assert [event.step for event in events] == [3, 3, 5_000]


def test_a_new_attempt_ends_it() -> None:
    events = told(ThinnedSpan(), sample(9, thinned=True), sample(4, thinned=True, attempt=1))
    assert [(event.kind, event.step, event.attempt) for event in events] == [
        ("statistics-thinned", 9, 0),
        ("statistics-complete", 9, 0),
        ("statistics-thinned", 4, 1),
    ]


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_it_goes_on_from_its_snapshot(cut: int) -> None:
    samples = [sample(step, thinned=10 <= step < 30 and step % 2 == 0) for step in range(60)]
    whole, part = ThinnedSpan(), ThinnedSpan()
    events = told(whole, *samples)
    before = told(part, *samples[:cut])
    rest = ThinnedSpan.restore(part.snapshot())
    assert before + told(rest, *samples[cut:]) == events
    assert rest.end() == whole.end()
