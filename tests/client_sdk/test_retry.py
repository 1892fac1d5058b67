"""A sender connects again at once, soon or late, depending on the error."""

from __future__ import annotations

import itertools

import pytest

from client_sdk.errors import TransportError
from client_sdk.retry import REFUSED_DELAY, WRITER_TAKEN_DELAY, RetrySchedule, backoff


@pytest.fixture
def schedule() -> RetrySchedule:
    return RetrySchedule(delays=lambda: itertools.count(1.0), clock=lambda: 100.0)


def test_delays_double_within_jitter_up_to_a_limit() -> None:
    delays = backoff(1.0, 8.0)
    for bound in (1, 2, 4, 8, 8, 8):
        assert bound / 2 <= next(delays) <= bound


def test_retryable_errors_take_the_next_delay_until_something_is_acknowledged(schedule: RetrySchedule) -> None:
    remaining = []
    for _ in range(3):
        schedule.failed(TransportError("closed", "the connection was closed"))
        remaining.append(schedule.remaining)
    schedule.succeeded()
    schedule.failed(TransportError("closed", "the connection was closed"))
    assert [*remaining, schedule.remaining] == [1.0, 2.0, 3.0, 1.0]


def test_server_that_goes_away_costs_no_delay_the_first_time(schedule: RetrySchedule) -> None:
    remaining = []
    for _ in range(2):
        schedule.failed(TransportError("going_away", "another server takes over"))
        remaining.append(schedule.remaining)
    schedule.succeeded()
    schedule.failed(TransportError("going_away", "another server takes over"))
    assert [*remaining, schedule.remaining] == [0.0, 1.0, 0.0]


def test_refusals_take_a_fixed_delay_unless_the_refused_record_is_being_isolated(schedule: RetrySchedule) -> None:
    schedule.failed(TransportError("forbidden", "not this project", retryable=False))
    assert schedule.remaining == REFUSED_DELAY
    assert schedule.waits_until(100.0 + REFUSED_DELAY)
    assert not schedule.waits_until(101.0 + REFUSED_DELAY)
    schedule.failed(TransportError("writer_taken", "another connection owns the writer", retryable=True))
    assert schedule.remaining == WRITER_TAKEN_DELAY
    schedule.failed(TransportError("bad_record", "a record is invalid", retryable=False), is_isolating=True)
    assert schedule.remaining == 0.0


def test_connection_is_due_at_once_on_demand(schedule: RetrySchedule) -> None:
    schedule.failed(TransportError("forbidden", "not this project", retryable=False))
    schedule.retry_now()
    assert schedule.remaining <= 0.0
