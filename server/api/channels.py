"""``/channels``: where alerts go. ``/notifications``: what holds for all of them. For administrators."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import asdict
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from starlette.responses import Response

from server.api.access import Administrator, Services, ServicesOf
from server.api.answers import ChannelAnswer, ChannelsAnswer, NotificationsAnswer, RemovedAnswer, TestAnswer
from server.api.encoding import json_response
from server.api.errors import REFUSALS
from server.errors import ApiError, ConfigurationError, SecretLostError
from server.models import AlertKind, AlertLevel
from server.notification import Channel, ChannelKind, Digest, NotificationSettings, QuietHours, Silence
from server.notifications.targets import TargetError, check_target, hint, new_signing_key

router = APIRouter(tags=["notifications"], responses=REFUSALS)

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


@router.get("/channels", response_model=ChannelsAnswer, summary="Where alerts go")
async def list_channels(services: ServicesOf, _: Administrator) -> Response:
    return json_response({"channels": [channel_json(channel) for channel in await services.channels.all()]})


@router.put("/channels", response_model=ChannelsAnswer, summary="Replace the channels")
async def replace_channels(services: ServicesOf, _: Administrator, body: ChannelsBody) -> Response:
    known = {channel.id: channel for channel in await services.channels.all()}
    given = [item.id for item in body.channels if item.id is not None]
    for item in given:
        if item not in known or given.count(item) > 1:
            raise ApiError(
                400, "unknown_channel", f"there is no channel {item!r}, or it is there twice; leave new ids out"
            )
    made = [await _channel(services, item, known.get(item.id or "")) for item in body.channels]
    await services.channels.replace([channel for channel, _ in made])
    keys = {channel.id: key for channel, key in made}
    stored = await services.channels.all()
    return json_response({"channels": [channel_json(channel, keys.get(channel.id)) for channel in stored]})


@router.put("/channels/{channel_id}", response_model=ChannelAnswer, summary="Change a channel")
async def change_channel(services: ServicesOf, _: Administrator, channel_id: ChannelId, body: ChannelBody) -> Response:
    before = await _existing(services, channel_id)
    channel, key = await _channel(services, body, before)
    await services.channels.put(channel)
    return json_response(channel_json(await _existing(services, channel_id), key))


@router.delete("/channels/{channel_id}", response_model=RemovedAnswer, summary="Remove a channel")
async def remove_channel(services: ServicesOf, _: Administrator, channel_id: ChannelId) -> Response:
    if not await services.channels.delete(channel_id):
        raise _unknown(channel_id)
    return json_response({"id": channel_id, "removed": True})


@router.post("/channels/{channel_id}/test", response_model=TestAnswer, summary="Send a test message")
async def try_channel(services: ServicesOf, _: Administrator, channel_id: ChannelId) -> Response:
    return json_response(await services.messenger.test(await _existing(services, channel_id)))


@router.get("/notifications", response_model=NotificationsAnswer, summary="Quiet hours, digests, silences")
async def get_notifications(services: ServicesOf, _: Administrator) -> Response:
    return json_response(asdict(await services.channels.settings()))


@router.put("/notifications", response_model=NotificationsAnswer, summary="Replace them")
async def put_notifications(services: ServicesOf, _: Administrator, body: NotificationsBody) -> Response:
    for run_id in {silence.run_id for silence in body.silences if silence.run_id is not None}:
        if await services.runs.project_of(run_id) is None:
            raise ApiError(400, "unknown_run", f"silences: there is no run {run_id!r}")
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
    return json_response(asdict(await services.channels.settings()))


def channel_json(channel: Channel, signing_key: str | None = None) -> dict[str, Any]:
    """A channel as administrators see it; never with its secret."""
    shown = asdict(channel)
    del shown["encrypted_secrets"]
    return shown if signing_key is None else {**shown, "signing_key": signing_key}


async def _channel(services: Services, body: ChannelBody, before: Channel | None) -> tuple[Channel, str | None]:
    """The channel that is asked for, and the signing key that was made for it. Raises `ApiError`."""
    settings = body.settings.model_dump(mode="json", exclude_none=True)
    if body.signing_key is not None and body.kind is not ChannelKind.WEBHOOK:
        raise ApiError(400, "invalid_parameter", "signing_key: only a channel of the kind webhook is signed")
    if before is not None and before.kind is not body.kind and body.secret is None:
        raise ApiError(400, "invalid_parameter", f"secret: a channel that becomes {body.kind} needs a new one")
    sealed: dict[str, str] = {}
    made: str | None = None
    if before is not None and (body.secret is None or body.signing_key is None):
        try:
            sealed = services.secrets.open(before.encrypted_secrets)
        except SecretLostError as error:
            if body.secret is None:
                raise ApiError(400, "secret_lost", f"{body.name}: {error}") from error
    secret = body.secret if body.secret is not None else sealed.get("secret")
    if secret is None:
        raise ApiError(400, "invalid_parameter", f"secret: the new channel {body.name!r} needs one")
    try:
        await asyncio.to_thread(
            check_target, body.kind, secret, settings, allow_private=services.messenger.allow_private
        )
    except TargetError as error:
        raise ApiError(400, "invalid_parameter", f"secret of {body.name!r}: {error}") from error
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
