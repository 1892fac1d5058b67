"""Slack by a bot token: one thread for each incident, and a picture of the run."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from client_sdk.answers import ChannelField
from server.log_actions import LogAction
from server.notification import Change
from server.notifications.channels.channel_kind import ChannelKind, DeliveryContext, Target, TargetError
from server.notifications.notification_text import Notification
from server.notifications.outbound import NETWORK_ERRORS, answer_to
from server.notifications.outcomes import Answer, retry_after
from server.notifications.slack_posting import post_with_fallback

logger = logging.getLogger(__name__)
_silent = logging.getLogger("server.notifications.slack_sdk")
_silent.setLevel(logging.CRITICAL)  # slack_sdk logs its requests, which contain the token

PICTURE_NAME: Final = "spikewatch.png"


class SlackBot(ChannelKind):
    """A Slack channel that an app posts in through the Web API."""

    name: ClassVar = "slack-bot"
    label: ClassVar = "Slack, bot token"
    fields: ClassVar = (
        ChannelField(
            name="secret",
            label="Secret",
            secret=True,
            required=True,
            help="the token, xoxb-…; encrypted, never shown again",
        ),
        ChannelField(
            name="channel",
            label="Slack channel",
            in_settings=True,
            required=True,
            placeholder="#training",
        ),
        ChannelField(
            name="picture",
            label="Picture of loss and λ_max",
            type="boolean",
            in_settings=True,
            default=True,
            advanced=True,
        ),
    )

    def check(self, target: Target, *, allow_private: bool) -> None:
        """Raise `TargetError` if the token is not a bot token, or no Slack channel is given."""
        del allow_private  # the address of Slack's API is a setting of the server
        token = target.secret
        if not token.startswith("xoxb-") or not token.isascii() or not token.isprintable() or " " in token:
            raise TargetError("secret", "enter the bot token of a Slack app; it begins with xoxb-")
        if not target.settings.get("channel"):
            raise TargetError(
                "settings.channel", "enter the id (C…) or the name of the Slack channel to post in, as settings.channel"
            )

    def hint(self, target: Target) -> str:
        """Return the Slack channel."""
        return _slack_channel(target)

    async def deliver(
        self, context: DeliveryContext, target: Target, notification: Notification, thread: str | None
    ) -> Answer:
        """Post the notification; the answer carries the thread of the incident and the id of the Slack channel."""
        client = _client(context, target)

        async def post(body: dict[str, Any]) -> Answer:
            return await _post(client, _slack_channel(target), notification, thread, body)

        return await post_with_fallback(post, notification)

    def wants_picture(self, settings: Mapping[str, Any]) -> bool:
        """Return the setting "picture"."""
        return bool(settings.get("picture", True))

    async def attach_picture(self, context: DeliveryContext, target: Target, posted: Answer, picture: bytes) -> None:
        """Upload a PNG picture to the thread of the posted message."""
        try:
            await _client(context, target).files_upload_v2(
                filename=PICTURE_NAME,
                content=picture,
                title="Loss and λ_max / limit around now",
                alt_txt="Loss and λ_max over its limit at the last steps",
                channel=posted.slack_channel,
                thread_ts=posted.thread,
            )
        except (SlackClientError, *NETWORK_ERRORS) as error:
            reason = str(_rejection(error)) if isinstance(error, SlackApiError) else type(error).__name__
            logger.warning("Slack did not accept a picture (%s)", reason, extra={"action": LogAction.PICTURE_FAILED})


def _slack_channel(target: Target) -> str:
    return str(target.settings.get("channel", ""))


def _client(context: DeliveryContext, target: Target) -> AsyncWebClient:
    return AsyncWebClient(
        token=target.secret,
        base_url=context.slack_api_url,
        timeout=int(context.outbound.timeout),
        session=context.outbound.session,
        logger=_silent,
        retry_handlers=[],  # `outcomes` alone decides when to retry
    )


async def _post(
    client: AsyncWebClient, channel: str, notification: Notification, thread: str | None, body: dict[str, Any]
) -> Answer:
    # Escalations are also shown in the channel: a reply in a thread notifies nobody else.
    broadcast = thread is not None and notification.change is Change.ESCALATED
    try:
        posted = await client.chat_postMessage(
            channel=channel,
            parse="none",
            link_names=False,
            thread_ts=thread,
            reply_broadcast=broadcast or None,
            **body,
        )
    except SlackApiError as error:
        return _rejection(error)
    except SlackClientError:
        return Answer(status=None, code="Slack's answer cannot be read")
    except NETWORK_ERRORS as error:
        return answer_to(error)
    slack_channel = str(posted.get("channel") or channel)  # the id, even if a name was entered
    return Answer(status=200, thread=thread or str(posted.get("ts") or "") or None, slack_channel=slack_channel)


def _rejection(error: SlackApiError) -> Answer:
    response = error.response
    headers: Any = getattr(response, "headers", None) or {}
    wait = headers.get("Retry-After") or headers.get("retry-after")
    data: Any = getattr(response, "data", None)
    code = str(data.get("error", "")) if isinstance(data, dict) else ""
    status = int(getattr(response, "status_code", 0) or 0) or None
    return Answer(status=status, code=code or "not an answer of Slack", retry_after=retry_after(wait, time.time()))
