"""Meaning of a receiving service's answer: sent, retry, notification rejected, or channel dead. Pure."""

from __future__ import annotations

import email.utils
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAX_RETRY_AFTER: Final = 3_600.0
"""Longest wait in seconds that a Retry-After header can ask for."""
BACKOFF: Final = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds between delivery attempts; the last value is repeated."""
JITTER: Final = 0.25
"""Fraction by which a wait is randomly lengthened or shortened."""


class DeliveryOutcome(StrEnum):
    """Consequence of one delivery attempt."""

    SENT = "sent"
    RETRY = "retry"
    REFUSED = "refused"
    """The service will never accept this notification, but may accept others."""
    DEAD = "dead"
    """The service will never accept any notification: the channel is misconfigured."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Result of one delivery attempt."""

    status: int | None
    """HTTP status, None if there was no answer."""
    code: str = ""
    """Error of the receiving service: an error code of Slack, or the first line of the body."""
    retry_after: float | None = None
    """Wait that the service asks for, in seconds."""
    thread: str | None = None
    """Slack's id of the message under which later ones are posted."""
    slack_channel: str | None = None
    """Slack's id of the channel that the message was posted in."""
    forbidden: bool = False
    """Whether this server refused to connect, because the address belongs to its own network."""

    def __str__(self) -> str:
        if self.status is None:
            return self.code or "no answer"
        return f"{self.status} {self.code}".strip()


DEAD_CODES: Final = frozenset(
    {
        "access_denied", "account_inactive", "action_prohibited", "app_access_denied", "as_user_not_supported",
        "channel_is_archived", "channel_not_found", "deprecated_endpoint", "ekm_access_denied",
        "enterprise_is_restricted", "invalid_auth", "invalid_token", "is_archived", "method_deprecated",
        "missing_scope", "no_active_hooks", "no_permission", "no_service", "no_team", "not_allowed_token_type",
        "not_authed", "not_in_channel", "org_login_required", "posting_to_general_channel_denied",
        "posting_to_channel_denied", "restricted_action", "restricted_action_non_threadable_channel",
        "restricted_action_read_only_channel", "restricted_action_thread_locked",
        "restricted_action_thread_only_channel", "team_access_not_granted", "team_disabled", "token_expired",
        "token_revoked", "two_factor_setup_required", "user_not_found",
    }
)  # fmt: skip
"""Error codes of Slack that no later attempt can change.

https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks, …/reference/methods/chat.postMessage"""

REFUSED_CODES: Final = frozenset(
    {
        "attachment_payload_limit_exceeded", "block_mismatch", "cannot_reply_to_message", "duplicate_channel_not_found",
        "invalid_arg_name", "invalid_arguments", "invalid_array_arg", "invalid_attachments", "invalid_blocks",
        "invalid_blocks_format", "invalid_charset", "invalid_form_data", "invalid_metadata_format",
        "invalid_metadata_schema", "invalid_payload", "invalid_post_type", "markdown_text_conflict",
        "message_limit_exceeded", "metadata_must_be_sent_from_app", "metadata_too_large", "missing_post_type",
        "msg_blocks_too_long", "msg_too_long", "no_text", "slack_connect_blocked_file_type", "thread_not_found",
        "too_many_attachments", "too_many_contact_cards",
    }
)  # fmt: skip
"""Error codes of Slack about a single message."""

_DEAD_STATUS: Final = frozenset({401, 402, 403, 404, 405, 407, 410, 451})
_RETRY_STATUS: Final = frozenset({408, 409, 421, 423, 425, 429})


def delivery_outcome(answer: Answer) -> DeliveryOutcome:
    """Decide whether an attempt succeeded, is retried, or is final.

    >>> [delivery_outcome(Answer(status=s)).value for s in (200, 503, 429, 404, 302, 400, None)]
    ['sent', 'retry', 'retry', 'dead', 'dead', 'refused', 'retry']
    >>> delivery_outcome(Answer(status=200, code="channel_not_found")).value
    'dead'
    """
    if answer.forbidden or answer.code in DEAD_CODES:
        return DeliveryOutcome.DEAD
    if answer.code in REFUSED_CODES:
        return DeliveryOutcome.REFUSED
    status = answer.status
    if status is None or status >= 500 or status in _RETRY_STATUS or status < 200:
        return DeliveryOutcome.RETRY
    if status < 300:
        # Slack's Web API reports errors with status 200 and a code. An unknown code may be temporary.
        return DeliveryOutcome.SENT if answer.code in ("", "ok") else DeliveryOutcome.RETRY
    if status < 400:
        return DeliveryOutcome.DEAD  # redirects are not followed, because they may lead anywhere
    return DeliveryOutcome.DEAD if status in _DEAD_STATUS else DeliveryOutcome.REFUSED


def delay(failures: int, answer: Answer, uniform: Callable[[float, float], float]) -> float:
    """Return the seconds to wait after ``failures`` failed attempts in a row (at least 1).

    ``uniform`` draws a random number between two bounds.
    """
    wait = BACKOFF[min(failures, len(BACKOFF)) - 1] * uniform(1 - JITTER, 1 + JITTER)
    return wait if answer.retry_after is None else max(wait if failures > 1 else 0.0, answer.retry_after)


def retry_after(header: str | None, now: float) -> float | None:
    """Return the seconds of a Retry-After header, which is a number or a date, or None if it cannot be read.

    >>> retry_after("30", 0.0), retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 10.0), retry_after("soon", 0.0)
    (30.0, 50.0, None)
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now
        except (TypeError, ValueError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), MAX_RETRY_AFTER)


def disabled_reason(answer: Answer) -> str:
    """Return the reason that people read next to a channel that the server has disabled."""
    if answer.forbidden:
        return answer.code
    if answer.status is not None and 300 <= answer.status < 400:
        return f"it answers {answer.status}, a redirect, which is not followed; enter the address that it leads to"
    return f"the receiving service rejects every notification ({answer}); correct the channel and switch it on again"
