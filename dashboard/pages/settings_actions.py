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
from dashboard.pages.channel_form import channel_body, channel_editor, channel_list, unchanged


async def edit_channel(action: FormAction, context: ActionContext) -> Properties:
    """Open the editor with a channel, or with a new one."""
    channel = await _channel(context, action.subject) if action.verb == "edit-channel" else None
    kinds = await context.client.channel_kinds()
    return {ids.CHANNEL_EDITOR: {"children": channel_editor(channel, kinds)}}


async def save_channel(action: FormAction, context: ActionContext) -> Properties:
    """Store the channel in the editor."""
    client = context.client
    kinds = await client.channel_kinds()
    if action.subject:
        known = await _channel(context, action.subject)
        changed = await client.put_channel(action.subject, channel_body(action.fields, known, kinds))
        saved = {changed.id: changed}
    else:
        others = [unchanged(channel, id=channel.id) for channel in await client.channels()]
        stored = await client.put_channels([*others, channel_body(action.fields, None, kinds)])
        saved = {channel.id: channel for channel in stored}
    # A signing key is only in the answer to the call that generated it.
    channels = [saved.get(channel.id, channel) for channel in await client.channels()]
    return {
        ids.CHANNEL_LIST: {"children": channel_list(channels, kinds, context.now)},
        ids.CHANNEL_EDITOR: {"children": None},
    }


async def test_channel(action: FormAction, context: ActionContext) -> Properties:
    """Send a test notification to a channel and show its result."""
    test = await context.client.test_channel(action.subject)
    result = "The test message was accepted." if test.ok else f"The test message was not accepted: {test.answer}"
    return await _channel_list(context, {action.subject: result})


async def switch_channel(action: FormAction, context: ActionContext) -> Properties:
    """Switch a channel on or off."""
    channel = await _channel(context, action.subject)
    await context.client.put_channel(channel.id, unchanged(channel, enabled=not channel.enabled))
    return await _channel_list(context, {})


async def delete_channel(action: FormAction, context: ActionContext) -> Properties:
    """Remove a channel and close the editor."""
    await context.client.delete_channel(action.subject)
    return {**await _channel_list(context, {}), ids.CHANNEL_EDITOR: {"children": None}}


async def _channel(context: ActionContext, channel_id: str) -> Channel:
    for channel in await context.client.channels():
        if channel.id == channel_id:
            return channel
    raise ApiRefusedError(404, "unknown_channel", "the channel has been removed in the meantime")


async def _channel_list(context: ActionContext, results: Mapping[str, str]) -> Properties:
    found, kinds = await context.client.channels(), await context.client.channel_kinds()
    return {ids.CHANNEL_LIST: {"children": channel_list(found, kinds, context.now, results)}}


async def save_quiet(action: FormAction, context: ActionContext) -> Properties:
    """Store the quiet hours."""
    hours = settings.quiet_hours(action.fields)
    await _change_notifications(context, quiet_hours=hours)
    return form_result(action, message="Saved.")


async def save_digest(action: FormAction, context: ActionContext) -> Properties:
    """Store the digest and the cooldown."""
    digest, cooldown = settings.digest(action.fields)
    await _change_notifications(context, digest=digest, cooldown_seconds=cooldown)
    return form_result(action, message="Saved.")


async def save_silence(action: FormAction, context: ActionContext) -> Properties:
    """Add a silence."""
    silence = settings.silence(action.fields, context.now, str(uuid.uuid4()))
    before = await context.client.notifications()
    return await _silence_list(context, await _change_notifications(context, silences=(*before.silences, silence)))


async def delete_silence(action: FormAction, context: ActionContext) -> Properties:
    """End a silence."""
    before = await context.client.notifications()
    kept = tuple(silence for silence in before.silences if silence.id != action.subject)
    return await _silence_list(context, await _change_notifications(context, silences=kept))


async def _silence_list(context: ActionContext, found: Notifications) -> Properties:
    runs = await context.client.runs()
    return {ids.SILENCE_LIST: {"children": settings.silences(found, runs, context.now)}}


async def create_token(action: FormAction, context: ActionContext) -> Properties:
    """Create a token and show its secret once."""
    created = await context.client.create_token(
        scope=action.fields.get("scope", ""),
        project=optional(action.fields, "project"),
        label=action.fields.get("label", "").strip(),
    )
    return await _token_list(context, created)


async def revoke_token(action: FormAction, context: ActionContext) -> Properties:
    """Revoke a token."""
    if action.subject.isdecimal():
        await context.client.revoke_token(int(action.subject))
    return await _token_list(context, None)


async def _token_list(context: ActionContext, created: Token | None) -> Properties:
    found = await context.client.tokens()
    return {ids.TOKEN_LIST: {"children": settings.tokens(found, context.now, created)}}


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
