"""Posting to Slack with blocks, and without them if Slack rejects the blocks."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from server.log_actions import LogAction
from server.notifications.notification_text import Notification
from server.notifications.outcomes import Answer, DeliveryOutcome, delivery_outcome
from server.notifications.slack_blocks import metadata, payload, plain_payload

logger = logging.getLogger(__name__)


async def post_with_fallback(post: Callable[[dict[str, Any]], Awaitable[Answer]], notification: Notification) -> Answer:
    """Post a notification, and once more as plain text if Slack rejects its blocks."""
    answer = await post({**payload(notification), "metadata": metadata(notification)})
    if delivery_outcome(answer) is DeliveryOutcome.REFUSED:
        logger.warning(
            "Slack rejected the blocks of a message (%s)", answer, extra={"action": LogAction.BLOCKS_REFUSED}
        )
        answer = await post(plain_payload(notification))
    return answer
