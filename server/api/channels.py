"""``/channels``: where alerts go. ``/notifications``: what holds for all of them. For administrators."""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import msgspec
from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from client_sdk import answers
from server.api.access import Administrator, Services, ServicesOf
from server.api.errors import REFUSALS
from server.api.router import AnswerRouter
from server.errors import ApiError, ConfigurationError, SecretLostError
from server.models import AlertKind, AlertLevel
from server.notification import Channel, ChannelKind, Digest, NotificationSettings, QuietHours, Silence
from server.notifications.targets import TargetError, check_target, hint, new_signing_key

router = AnswerRouter(tags=["notifications"], responses=REFUSALS)

ChannelId = Annotated[str, Path(max_length=36, description="Id of the channel.")]
MAX_CHANNELS = 100
MAX_SILENCES = 1_000
Text = Annotated[str, Field(max_length=256, pattern=r"^[^\x00]*$")]


class QuietHoursBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    start: str = Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="HH:MM")
    end: str = Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="HH:MM; before `start`: of the next day.")
    timezone: Text = Field(default="UTC", description="A name of the IANA database, for example Europe/Berlin.")
    min_level: AlertLevel = Field(
        default=AlertLevel.CRITICAL, description="This level and above are told all the same."
    )

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError("no such time zone; use a name like UTC or Europe/Berlin") from error
        return value

    def value(self) -> QuietHours:
        return QuietHours(**self.model_dump(mode="json"))


class ChannelSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    channel: Text | None = Field(default=None, description="slack-bot: id or name of the Slack channel.")
    picture: bool = Field(default=True, description="slack-bot: add a picture of loss and λ_max.")
    quiet_hours: QuietHoursBody | None = Field(default=None, description="Instead of those of all channels.")


class ChannelBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Text = Field(min_length=1)
    kind: ChannelKind
    secret: str | None = Field(
        default=None,
        max_length=4_096,
        description="Webhook URL, bot token or apprise URL. Never shown again; a known channel keeps its own without.",
    )
    signing_key: str | None = Field(
        default=None,
        min_length=16,
        max_length=256,
        pattern=r"^[\x21-\x7e]+$",
        description="webhook: what messages are signed with. Made, and shown this once, where a new one has none.",
    )
    project: Text | None = Field(default=None, description="Only runs of this project.")
    min_level: AlertLevel = AlertLevel.WARNING
    kinds: list[AlertKind] | None = Field(default=None, description="Only alerts of these kinds.")
    enabled: bool = True
    settings: ChannelSettings = ChannelSettings()


READ_ONLY = frozenset({"target", "disabled_reason", "created_at", "last_sent_at", "last_error", "failures"})
"""What a list tells of a channel and nobody sets: a list may be put back as it came."""


class ListedChannel(ChannelBody):
    id: str | None = Field(default=None, max_length=36, description="Of a channel that is there already.")

    @model_validator(mode="before")
    @classmethod
    def _settable(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if key not in READ_ONLY}


class ChannelsBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    channels: list[ListedChannel] = Field(max_length=MAX_CHANNELS)


class DigestBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    window_seconds: float = Field(default=60.0, ge=1, le=86_400)
    threshold: int = Field(default=5, ge=2, le=1_000)


class SilenceBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str | None = Field(default=None, max_length=36, pattern=r"^[0-9a-f-]+$")
    run_id: str | None = Field(default=None, max_length=128)
    project: Text | None = None
    kind: AlertKind | None = None
    until: float = Field(ge=0, le=1e11, description="Unix time.")
    reason: str = Field(default="", max_length=1_000, pattern=r"^[^\x00]*$")


class NotificationsBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    quiet_hours: QuietHoursBody | None = None
    digest: DigestBody = DigestBody()
    cooldown_seconds: float = Field(default=600.0, ge=0, le=604_800)
    silences: list[SilenceBody] = Field(default=[], max_length=MAX_SILENCES)


@router.get("/channels", summary="Where alerts go")
async def list_channels(services: ServicesOf, _: Administrator) -> answers.Channels:
    return answers.Channels(channels=tuple(channel_answer(channel) for channel in await services.channels.all()))


@router.put("/channels", summary="Replace the channels")
async def replace_channels(services: ServicesOf, _: Administrator, body: ChannelsBody) -> answers.Channels:
    known = {channel.id: channel for channel in await services.channels.all()}
    given = [item.id for item in body.channels if item.id is not None]
    for number, item in enumerate(body.channels):
        if item.id is not None and (item.id not in known or given.count(item.id) > 1):
            message = f"the channel {item.id!r} does not exist or is listed twice; leave out the ids of new channels"
            raise ApiError(400, "unknown_channel", message, field=f"channels.{number}.id")
    made = [
        await _channel(services, item, known.get(item.id or ""), f"channels.{number}.")
        for number, item in enumerate(body.channels)
    ]
    await services.channels.replace([channel for channel, _ in made])
    keys = {channel.id: key for channel, key in made}
    stored = await services.channels.all()
    return answers.Channels(channels=tuple(channel_answer(channel, keys.get(channel.id)) for channel in stored))


@router.put("/channels/{channel_id}", summary="Change a channel")
async def change_channel(
    services: ServicesOf, _: Administrator, channel_id: ChannelId, body: ChannelBody
) -> answers.Channel:
    before = await _existing(services, channel_id)
    channel, key = await _channel(services, body, before)
    await services.channels.put(channel)
    return channel_answer(await _existing(services, channel_id), key)


@router.delete("/channels/{channel_id}", summary="Remove a channel")
async def remove_channel(services: ServicesOf, _: Administrator, channel_id: ChannelId) -> answers.Removed:
    if not await services.channels.delete(channel_id):
        raise _unknown(channel_id)
    return answers.Removed(id=channel_id)


@router.post("/channels/{channel_id}/test", summary="Send a test message")
async def send_test_message(services: ServicesOf, _: Administrator, channel_id: ChannelId) -> answers.ChannelTest:
    return await services.messenger.test(await _existing(services, channel_id))


@router.get("/notifications", summary="Quiet hours, digests, silences")
async def get_notifications(services: ServicesOf, _: Administrator) -> answers.Notifications:
    return msgspec.convert(await services.channels.settings(), answers.Notifications, from_attributes=True)


@router.put("/notifications", summary="Replace them")
async def put_notifications(services: ServicesOf, _: Administrator, body: NotificationsBody) -> answers.Notifications:
    for number, silence in enumerate(body.silences):
        if silence.run_id is not None and await services.runs.project_of(silence.run_id) is None:
            field = f"silences.{number}.run_id"
            raise ApiError(400, "unknown_run", f"{field}: the run {silence.run_id!r} does not exist", field=field)
    silences = {
        silence.id or str(uuid.uuid4()): silence.model_dump(mode="json", exclude={"id"}) for silence in body.silences
    }
    await services.channels.save_settings(
        NotificationSettings(
            quiet_hours=None if body.quiet_hours is None else body.quiet_hours.value(),
            digest=Digest(**body.digest.model_dump()),
            cooldown_seconds=body.cooldown_seconds,
            silences=tuple(Silence(id=name, **silence) for name, silence in silences.items()),
        )
    )
    return msgspec.convert(await services.channels.settings(), answers.Notifications, from_attributes=True)


def channel_answer(channel: Channel, signing_key: str | None = None) -> answers.Channel:
    """Return a channel as administrators see it, without its secrets."""
    shown = msgspec.convert(channel, answers.Channel, from_attributes=True)
    return shown if signing_key is None else msgspec.structs.replace(shown, signing_key=signing_key)


async def _channel(
    services: Services, body: ChannelBody, before: Channel | None, place: str = ""
) -> tuple[Channel, str | None]:
    """Return the requested channel and the signing key that was created for it.

    Raises `ApiError` with the path of the field: ``place`` and the name of the field.
    """
    settings = body.settings.model_dump(mode="json", exclude_none=True)
    if body.signing_key is not None and body.kind is not ChannelKind.WEBHOOK:
        message = "signing_key: only a channel of the kind webhook is signed"
        raise ApiError(400, "invalid_parameter", message, field=f"{place}signing_key")
    if before is not None and before.kind is not body.kind and body.secret is None:
        message = f"secret: a channel that becomes {body.kind} needs a new one"
        raise ApiError(400, "invalid_parameter", message, field=f"{place}secret")
    sealed: dict[str, str] = {}
    made: str | None = None
    if before is not None and (body.secret is None or body.signing_key is None):
        try:
            sealed = services.secrets.open(before.encrypted_secrets)
        except SecretLostError as error:
            if body.secret is None:
                raise ApiError(400, "secret_lost", f"{body.name}: {error}", field=f"{place}secret") from error
    secret = body.secret if body.secret is not None else sealed.get("secret")
    if secret is None:
        message = f"secret: the new channel {body.name!r} needs one"
        raise ApiError(400, "invalid_parameter", message, field=f"{place}secret")
    try:
        await asyncio.to_thread(
            check_target, body.kind, secret, settings, allow_private=services.messenger.allow_private
        )
    except TargetError as error:
        field = f"{place}{error.field}"
        raise ApiError(400, "invalid_parameter", f"{field}: {error}", field=field) from error
    contents = {"secret": secret}
    if body.kind is ChannelKind.WEBHOOK:
        key = body.signing_key or sealed.get("signing_key")
        if key is None:
            key = made = new_signing_key()
        contents["signing_key"] = key
    try:
        sealed_anew = services.secrets.seal(contents)
    except ConfigurationError as error:
        raise ApiError(503, "no_secret_key", f"secrets cannot be encrypted: {error}") from error
    return (
        Channel(
            id=str(uuid.uuid4()) if before is None else before.id,
            name=body.name,
            kind=body.kind,
            target=hint(body.kind, secret, settings)[:256],
            encrypted_secrets=sealed_anew,
            project=body.project,
            min_level=body.min_level.value,
            kinds=None if body.kinds is None else tuple(kind.value for kind in body.kinds),
            enabled=body.enabled,
            disabled_reason=None if body.enabled or before is None else before.disabled_reason,
            settings=settings,
            created_at=services.clock() if before is None else before.created_at,
        ),
        made,
    )


async def _existing(services: Services, channel_id: str) -> Channel:
    channel = await services.channels.get(channel_id)
    if channel is None:
        raise _unknown(channel_id)
    return channel


def _unknown(channel_id: str) -> ApiError:
    return ApiError(404, "unknown_channel", f"there is no channel {channel_id!r}; GET /api/v1/channels lists them")
