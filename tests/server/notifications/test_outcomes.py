"""The outcome of a delivery attempt, and the wait before the next one."""

from __future__ import annotations

import pytest

from server.notifications.outcomes import BACKOFF, Answer, DeliveryOutcome, delay, delivery_outcome, retry_after


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(status=200), DeliveryOutcome.SENT),
        (Answer(status=204), DeliveryOutcome.SENT),
        (Answer(status=None, code="no answer in time"), DeliveryOutcome.RETRY),
        (Answer(status=429, retry_after=30.0), DeliveryOutcome.RETRY),
        (Answer(status=500), DeliveryOutcome.RETRY),
        (Answer(status=503, code="service_unavailable"), DeliveryOutcome.RETRY),
        (Answer(status=200, code="ratelimited"), DeliveryOutcome.RETRY),
        (Answer(status=200, code="internal_error"), DeliveryOutcome.RETRY),
        (Answer(status=200, code="a_code_that_slack_adds_later"), DeliveryOutcome.RETRY),
        (Answer(status=400, code="invalid_blocks"), DeliveryOutcome.REFUSED),
        (Answer(status=200, code="msg_too_long"), DeliveryOutcome.REFUSED),
        (Answer(status=422), DeliveryOutcome.REFUSED),
        (Answer(status=403, code="action_prohibited"), DeliveryOutcome.DEAD),
        (Answer(status=404, code="no_service"), DeliveryOutcome.DEAD),
        (Answer(status=410, code="channel_is_archived"), DeliveryOutcome.DEAD),
        (Answer(status=200, code="invalid_auth"), DeliveryOutcome.DEAD),
        (Answer(status=200, code="channel_not_found"), DeliveryOutcome.DEAD),
        (Answer(status=302), DeliveryOutcome.DEAD),
        (Answer(status=None, code="own network", forbidden=True), DeliveryOutcome.DEAD),
    ],
)
def test_an_answer_has_one_outcome(answer: Answer, expected: DeliveryOutcome) -> None:
    assert delivery_outcome(answer) is expected


def test_waits_grow_and_are_randomized() -> None:
    shortest = [delay(failures, Answer(status=500), lambda low, _: low) for failures in range(1, 12)]
    longest = [delay(failures, Answer(status=500), lambda _, high: high) for failures in range(1, 12)]
    assert shortest == sorted(shortest)
    assert longest[-1] == BACKOFF[-1] * 1.25
    assert all(low < high for low, high in zip(shortest, longest, strict=True))


def test_the_receiving_service_may_ask_for_a_longer_wait() -> None:
    assert delay(1, Answer(status=429, retry_after=30.0), lambda low, _: low) == 30.0
    assert delay(8, Answer(status=429, retry_after=0.0), lambda _, high: high) == 375.0


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, None), ("7", 7.0), ("-3", 0.0), ("nan", None), ("1e99", 3600.0)]
)
def test_a_retry_after_header_is_limited(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, 0.0) == seconds
