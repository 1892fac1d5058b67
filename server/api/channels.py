"""``/channels``: destinations of notifications. ``/notifications``: settings of all channels. For administrators."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import msgspec
from fastapi import Path
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)

from client_sdk import answers
from server.api.access import Administrator, Services, ServicesOf
from server.api.refusals import refusals
from server.api.router import AnswerRouter
from server.errors import ApiError, ConfigurationError, SecretLostError
from server.models import AlertKind, AlertLevel
from server.notification import Channel, Digest, NotificationSettings, QuietHours, Silence
from server.notifications.channels.channel_kind import ChannelKind, Target, TargetError, new_signing_key
from server.notifications.channels.registry import KINDS, kind_named

router = AnswerRouter(tags=["notifications"])

ChannelId = Annotated[str, Path(max_length=36, description="Id of the channel.")]
MAX_CHANNELS = 100
MAX_SILENCES = 1_000
Text = Annotated[str, Field(max_length=256, pattern=r"^[^\x00]*$")]
KIND_NAMES = tuple(kind.name for kind in KINDS)


def _known_kind(name: str) -> str:
    if name not in KIND_NAMES:
        raise ValueError(f"there is no kind {name!r}; the kinds are {', '.join(KIND_NAMES)}")
    return name


KindName = Annotated[str, AfterValidator(_known_kind), WithJsonSchema({"type": "string", "enum": list(KIND_NAMES)})]
"""Name of a kind of channel in a request."""


class QuietHoursBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    start: str = Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="HH:MM")
    end: str = Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="HH:MM; the next day if before `start`.")
    timezone: Text = Field(default="UTC", description="Name of an IANA time zone, for example Europe/Berlin.")
    min_level: AlertLevel = Field(
        default=AlertLevel.CRITICAL, description="Lowest level of the alerts that are sent during quiet hours."
    )

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError("there is no such time zone; use a name like UTC or Europe/Berlin") from error
        return value

    def value(self) -> QuietHours:
        """Return the quiet hours as a value of the server."""
        return QuietHours(**self.model_dump(mode="json"))


class _CommonSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    quiet_hours: QuietHoursBody | None = Field(
        default=None, description="Quiet hours of this channel, instead of those of all channels."
    )


def _settings_fields() -> dict[str, Any]:
    """Return the settings of all kinds as fields of a Pydantic model."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        for field in kind.fields:
            if field.in_settings:
                described = Field(default=field.default, description=f"{kind.name}: {field.label}.")
                found.setdefault(field.name, (bool if field.type == "boolean" else Text | None, described))
    return found


if TYPE_CHECKING:
    ChannelSettings = _CommonSettings
else:
    ChannelSettings = create_model("ChannelSettings", __base__=_CommonSettings, **_settings_fields())


class ChannelBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Text = Field(min_length=1)
    kind: KindName
    secret: str | None = Field(
        default=None,
        max_length=4_096,
        description="Webhook URL, bot token or apprise URL. Never returned; if left out, a channel keeps its own.",
    )
    signing_key: str | None = Field(
        default=None,
        min_length=16,
        max_length=256,
        pattern=r"^[\x21-\x7e]+$",
        description="webhook: key of the signatures. Generated, and returned once, if a new channel has none.",
    )
    project: Text | None = Field(default=None, description="Only runs of this project.")
    min_level: AlertLevel = AlertLevel.WARNING
    kinds: list[AlertKind] | None = Field(default=None, description="Only alerts of these kinds.")
    enabled: bool = True
    settings: ChannelSettings = ChannelSettings()


READ_ONLY = frozenset({"target", "disabled_reason", "created_at", "last_sent_at", "last_error", "failures"})
"""Fields of an answer that a request may contain but cannot set, so that a list can be sent back unchanged."""


class ListedChannel(ChannelBody):
    id: str | None = Field(default=None, max_length=36, description="Id of an existing channel.")

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


@router.get("/channels", summary="List the channels")
async def list_channels(services: ServicesOf, _: Administrator) -> answers.Channels:
    """Return all channels without their secrets."""
    return answers.Channels(channels=tuple(channel_answer(channel) for channel in await services.channels.all()))


@router.get("/channels/kinds", summary="List the kinds of channels")
async def list_kinds(_: Administrator) -> answers.ChannelKinds:
    """Return the kinds of channels with the fields of their forms, in the order in which they are offered."""
    return answers.ChannelKinds(kinds=tuple(kind_answer(kind) for kind in KINDS))


@router.put("/channels", summary="Replace the channels")
async def replace_channels(services: ServicesOf, _: Administrator, body: ChannelsBody) -> answers.Channels:
    """Replace all channels by those in the body; a channel with an id and without a secret keeps its secret."""
    known = {channel.id: channel for channel in await services.channels.all()}
    given = [item.id for item in body.channels if item.id is not None]
    for number, item in enumerate(body.channels):
        if item.id is not None and (item.id not in known or given.count(item.id) > 1):
            message = f"there is no channel {item.id!r}, or it is listed twice; leave new ids out"
            raise ApiError(400, "unknown_channel", message, field=f"channels.{number}.id")
    wanted = [
        await _channel(services, item, known.get(item.id or ""), f"channels.{number}.")
        for number, item in enumerate(body.channels)
    ]
    await services.channels.replace([channel for channel, _ in wanted])
    keys = {channel.id: key for channel, key in wanted}
    stored = await services.channels.all()
    return answers.Channels(channels=tuple(channel_answer(channel, keys.get(channel.id)) for channel in stored))


@router.put("/channels/{channel_id}", responses=refusals(404), summary="Change a channel")
async def change_channel(
    services: ServicesOf, _: Administrator, channel_id: ChannelId, body: ChannelBody
) -> answers.Channel:
    """Change one channel, which keeps its secret if the body has none."""
    before = await _existing(services, channel_id)
    channel, key = await _channel(services, body, before)
    await services.channels.put(channel)
    return channel_answer(await _existing(services, channel_id), key)


@router.delete("/channels/{channel_id}", responses=refusals(404), summary="Remove a channel")
async def remove_channel(services: ServicesOf, _: Administrator, channel_id: ChannelId) -> answers.Removed:
    """Remove a channel together with the notifications that wait for it."""
    if not await services.channels.delete(channel_id):
        raise _unknown(channel_id)
    return answers.Removed(id=channel_id)


@router.post("/channels/{channel_id}/test", responses=refusals(404), summary="Send a test message")
async def send_test_message(services: ServicesOf, _: Administrator, channel_id: ChannelId) -> answers.ChannelTest:
    """Send a test message now, and return the answer of the receiving service."""
    return await services.messenger.test(await _existing(services, channel_id))


@router.get("/notifications", summary="Quiet hours, digests, silences")
async def get_notifications(services: ServicesOf, _: Administrator) -> answers.Notifications:
    """Return the settings that apply to all channels."""
    return msgspec.convert(await services.channels.settings(), answers.Notifications, from_attributes=True)


@router.put("/notifications", summary="Replace quiet hours, digests, silences")
async def put_notifications(services: ServicesOf, _: Administrator, body: NotificationsBody) -> answers.Notifications:
    """Replace the settings that apply to all channels."""
    for number, silence in enumerate(body.silences):
        if silence.run_id is not None and await services.runs.project_of(silence.run_id) is None:
            message = f"silences: there is no run {silence.run_id!r}"
            raise ApiError(400, "unknown_run", message, field=f"silences.{number}.run_id")
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
    """Return a channel as administrators see it. Its secret is never part of it; ``signing_key`` is a new key."""
    shown = msgspec.convert(channel, answers.Channel, from_attributes=True)
    return shown if signing_key is None else msgspec.structs.replace(shown, signing_key=signing_key)


def kind_answer(kind: ChannelKind) -> answers.ChannelKind:
    """Return a kind of channel with the fields of its form."""
    return msgspec.convert(kind, answers.ChannelKind, from_attributes=True)


async def _channel(
    services: Services, body: ChannelBody, before: Channel | None, path: str = ""
) -> tuple[Channel, str | None]:
    """Return the channel that the body describes, and its signing key if one was generated.

    ``path``: path of the channel in the body. Raises `ApiError`, which names the field at fault.
    """
    kind = kind_named(body.kind)
    settings = body.settings.model_dump(mode="json", exclude_none=True)
    if body.signing_key is not None and not kind.is_signed:
        raise _refused(path, "signing_key", f"channels of the kind {kind.name} are not signed; leave the key out")
    if before is not None and before.kind != kind.name and body.secret is None:
        raise _refused(path, "secret", f"a channel that changes its kind to {kind.name} needs a new secret")
    stored: dict[str, str] = {}
    if before is not None and (body.secret is None or body.signing_key is None):
        try:
            stored = services.secrets.open(before.encrypted_secrets)
        except SecretLostError as error:
            if body.secret is None:
                raise ApiError(400, "secret_lost", f"{body.name}: {error}", field=f"{path}secret") from error
    secret = body.secret if body.secret is not None else stored.get("secret")
    if secret is None:
        raise _refused(path, "secret", f"the new channel {body.name!r} needs one")
    target = Target(secret=secret, settings=settings)
    try:
        await asyncio.to_thread(kind.check, target, allow_private=services.messenger.allow_private)
    except TargetError as error:
        raise _refused(path, error.field, error.reason) from error
    contents = {"secret": secret}
    generated: str | None = None
    if kind.is_signed:
        key = body.signing_key or stored.get("signing_key")
        if key is None:
            key = generated = new_signing_key()
        contents["signing_key"] = key
    try:
        encrypted = services.secrets.seal(contents)
    except ConfigurationError as error:
        raise ApiError(503, "no_secret_key", f"secrets cannot be encrypted: {error}") from error
    channel = Channel(
        id=str(uuid.uuid4()) if before is None else before.id,
        name=body.name,
        kind=kind.name,
        target=kind.hint(target)[:256],
        encrypted_secrets=encrypted,
        project=body.project,
        min_level=body.min_level.value,
        kinds=None if body.kinds is None else tuple(kind.value for kind in body.kinds),
        enabled=body.enabled,
        disabled_reason=None if body.enabled or before is None else before.disabled_reason,
        settings=settings,
        created_at=services.clock() if before is None else before.created_at,
    )
    return channel, generated


async def _existing(services: Services, channel_id: str) -> Channel:
    channel = await services.channels.get(channel_id)
    if channel is None:
        raise _unknown(channel_id)
    return channel


def _unknown(channel_id: str) -> ApiError:
    return ApiError(404, "unknown_channel", f"there is no channel {channel_id!r}; GET /api/v1/channels lists them")


def _refused(path: str, field: str, reason: str) -> ApiError:
    path = f"{path}{field}"
    return ApiError(400, "invalid_parameter", f"{path}: {reason}", field=path)
