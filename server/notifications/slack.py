"""Slack: an incoming webhook, which takes messages, and a bot, which has threads and pictures."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

import msgspec
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from server.notification import Change
from server.notifications.notification_text import Notification
from server.notifications.outbound import NETWORK_ERRORS, Outbound, answer_to
from server.notifications.outcomes import Answer, DeliveryOutcome, delivery_outcome, retry_after
from server.notifications.slack_blocks import metadata, payload, plain_payload

logger = logging.getLogger(__name__)
_silent = logging.getLogger("server.notifications.slack_sdk")
_silent.setLevel(logging.CRITICAL)  # it would print requests, and with them what is secret

PICTURE_NAME: Final = "spikewatch.png"


async def post_webhook(outbound: Outbound, url: str, message: Notification) -> Answer:
    """Slack's own answer is the word ``ok``. Blocks that it refuses are left out in a second attempt."""
    answer = await _post(outbound, url, {**payload(message), "metadata": metadata(message)})
    if delivery_outcome(answer) is DeliveryOutcome.REFUSED:
        logger.warning("Slack refused the blocks of a message (%s)", answer, extra={"action": "blocks_refused"})
        answer = await _post(outbound, url, plain_payload(message))
    return answer


async def _post(outbound: Outbound, url: str, body: dict[str, Any]) -> Answer:
    return await outbound.ask(url, msgspec.json.encode(body), {"Content-Type": "application/json; charset=utf-8"})


class SlackBot:
    """Slack's Web API with one bot token."""

    def __init__(self, outbound: Outbound, token: str, channel: str, api_url: str) -> None:
        self._outbound = outbound
        self._channel = channel
        self._client = AsyncWebClient(
            token=token,
            base_url=api_url,
            timeout=int(outbound.timeout),
            session=outbound.session,
            logger=_silent,
            retry_handlers=[],  # when to try again is decided in one place, `outcomes`
        )

    async def post(self, message: Notification, thread: str | None) -> Answer:
        """The answer carries the thread that later messages go into, and the channel's id."""
        answer = await self._say(message, thread, {**payload(message), "metadata": metadata(message)})
        if delivery_outcome(answer) is DeliveryOutcome.REFUSED:
            logger.warning("Slack refused the blocks of a message (%s)", answer, extra={"action": "blocks_refused"})
            answer = await self._say(message, thread, plain_payload(message))
        return answer

    async def _say(self, message: Notification, thread: str | None, body: dict[str, Any]) -> Answer:
        # What has become graver is shown in the channel too: a thread alone calls nobody.
        broadcast = thread is not None and message.change is Change.ESCALATED
        try:
            said = await self._client.chat_postMessage(
                channel=self._channel,
                parse="none",
                link_names=False,
                thread_ts=thread,
                reply_broadcast=broadcast or None,
                **body,
            )
        except SlackApiError as error:
            return _refusal(error)
        except SlackClientError:
            return Answer(status=None, code="Slack's answer cannot be read")
        except NETWORK_ERRORS as error:
            return answer_to(error)
        place = str(said.get("channel") or self._channel)  # its id, where a name was entered
        return Answer(status=200, thread=thread or str(said.get("ts") or "") or None, place=place)

    async def show(self, picture: bytes, posted: Answer) -> None:
        """A picture in the thread of a message. Where it fails the message stands without it."""
        try:
            await self._client.files_upload_v2(
                filename=PICTURE_NAME,
                content=picture,
                title="Loss and λ_max / limit around now",
                alt_txt="Loss and λ_max over its limit at the last steps",
                channel=posted.place,
                thread_ts=posted.thread,
            )
        except (SlackClientError, *NETWORK_ERRORS) as error:
            reason = str(_refusal(error)) if isinstance(error, SlackApiError) else type(error).__name__
            logger.warning("a picture was not taken (%s)", reason, extra={"action": "picture_failed"})


def _refusal(error: SlackApiError) -> Answer:
    response = error.response
    headers: Any = getattr(response, "headers", None) or {}
    wait = headers.get("Retry-After") or headers.get("retry-after")
    data: Any = getattr(response, "data", None)
    code = str(data.get("error", "")) if isinstance(data, dict) else ""
    status = int(getattr(response, "status_code", 0) or 0) or None
    return Answer(
        status=status, code=code or "an answer that is not Slack's", retry_after=retry_after(wait, time.time())
    )
