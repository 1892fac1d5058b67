"""Form actions of the settings: channels, quiet hours, digests, silences and tokens."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from client_sdk.answers import Channel, Notifications, Token
from dashboard import ids
from dashboard.client import ApiRefusedError
from dashboard.forms.actions import ActionContext, FormAction, Handler, Properties, form_result
from dashboard.forms.fields import optional
from dashboard.pages import settings
from dashboard.pages.settings_live import forms


async def edit_channel(action: FormAction, context: ActionContext) -> Properties:
    """Open the editor with a channel, or with a new one."""
    channel = await _channel(context, action.of) if action.verb == "edit-channel" else None
    return {ids.CHANNEL_EDITOR: {"children": settings.channel_editor(channel)}}


async def save_channel(action: FormAction, context: ActionContext) -> Properties:
    """Store the channel in the editor."""
    if action.of:
        known = await _channel(context, action.of)
        changed = await context.client.put_channel(action.of, settings.channel_body(action.fields, known))
        made = {changed.id: changed}
    else:
        before = await context.client.channels()
        sent = [settings.as_sent(channel, id=channel.id) for channel in before]
        stored = await context.client.put_channels([*sent, settings.channel_body(action.fields, None)])
        made = {channel.id: channel for channel in stored}
    channels = [made.get(channel.id, channel) for channel in await context.client.channels()]
    return {
        ids.CHANNEL_LIST: {"children": settings.channels(channels, context.now)},
        ids.CHANNEL_EDITOR: {"children": None},
    }


async def test_channel(action: FormAction, context: ActionContext) -> Properties:
    """Send a test notification to a channel and show its result."""
    test = await context.client.test_channel(action.of)
    said = "The test message was taken." if test.ok else f"The test message was not taken: {test.answer}"
    return await _channel_list(context, {action.of: said})


async def switch_channel(action: FormAction, context: ActionContext) -> Properties:
    """Switch a channel on or off."""
    channel = await _channel(context, action.of)
    await context.client.put_channel(channel.id, settings.as_sent(channel, enabled=not channel.enabled))
    return await _channel_list(context, {})


async def delete_channel(action: FormAction, context: ActionContext) -> Properties:
    """Remove a channel and close the editor."""
    await context.client.delete_channel(action.of)
    return {**await _channel_list(context, {}), ids.CHANNEL_EDITOR: {"children": None}}


async def _channel(context: ActionContext, channel_id: str) -> Channel:
    for channel in await context.client.channels():
        if channel.id == channel_id:
            return channel
    raise ApiRefusedError(404, "unknown_channel", "the channel was removed meanwhile")


async def _channel_list(context: ActionContext, results: Mapping[str, str]) -> Properties:
    found = await context.client.channels()
    return {ids.CHANNEL_LIST: {"children": settings.channels(found, context.now, results)}}


async def save_quiet(action: FormAction, context: ActionContext) -> Properties:
    """Store the quiet hours."""
    hours = settings.quiet_hours(action.fields)
    await _change_notifications(context, quiet_hours=hours)
    return form_result(action, message="Saved.")


async def save_digest(action: FormAction, context: ActionContext) -> Properties:
    """Store the digest and the cooldown."""
    made, cooldown = settings.digest(action.fields)
    await _change_notifications(context, digest=made, cooldown_seconds=cooldown)
    return form_result(action, message="Saved.")


async def save_silence(action: FormAction, context: ActionContext) -> Properties:
    """Add a silence."""
    made = settings.silence(action.fields, context.now, str(uuid.uuid4()))
    before = await context.client.notifications()
    return await _silence_list(context, await _change_notifications(context, silences=(*before.silences, made)))


async def delete_silence(action: FormAction, context: ActionContext) -> Properties:
    """End a silence."""
    before = await context.client.notifications()
    kept = tuple(silence for silence in before.silences if silence.id != action.of)
    return await _silence_list(context, await _change_notifications(context, silences=kept))


async def _silence_list(context: ActionContext, found: Notifications) -> Properties:
    runs = await context.client.runs()
    return {ids.SILENCE_LIST: {"children": forms(found, runs, context.now)[ids.SILENCE_LIST]}}


async def create_token(action: FormAction, context: ActionContext) -> Properties:
    """Create a token and show its secret once."""
    made = await context.client.create_token(
        scope=action.fields.get("scope", ""),
        project=optional(action.fields, "project"),
        label=action.fields.get("label", "").strip(),
    )
    return await _token_list(context, made)


async def revoke_token(action: FormAction, context: ActionContext) -> Properties:
    """Revoke a token."""
    if action.of.isdecimal():
        await context.client.revoke_token(int(action.of))
    return await _token_list(context, None)


async def _token_list(context: ActionContext, made: Token | None) -> Properties:
    found = await context.client.tokens()
    return {ids.TOKEN_LIST: {"children": settings.tokens(found, context.now, made)}}


async def _change_notifications(context: ActionContext, **changes: Any) -> Notifications:
    """Change some of the notification settings and drop expired silences."""
    before = await context.client.notifications()
    now = context.now
    wanted = msgspec.structs.replace(before, **changes)
    held = tuple(silence for silence in wanted.silences if silence.until > now)
    return await context.client.put_notifications(msgspec.structs.replace(wanted, silences=held))


SETTINGS_ACTIONS: Final[Mapping[str, Handler]] = {
    "new-channel": edit_channel,
    "edit-channel": edit_channel,
    "save-channel": save_channel,
    "test-channel": test_channel,
    "switch-channel": switch_channel,
    "delete-channel": delete_channel,
    "save-quiet": save_quiet,
    "save-digest": save_digest,
    "save-silence": save_silence,
    "delete-silence": delete_silence,
    "save-token": create_token,
    "revoke-token": revoke_token,
}
"""Handlers keyed by verb."""
