"""What people do with forms and their buttons: one deed at a time, from forms.js to the API and back to the page.

Owns which call a deed makes and what the page shows then. A refusal is shown at its field, and nothing typed is lost.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from dashboard import ids
from dashboard.client import ApiClient, ApiError, ApiRefusedError
from dashboard.forms.fields import FieldError, optional
from dashboard.models import Channel, Notifications, Rule, Token
from dashboard.pages import rules, settings
from dashboard.pages.alert_cards import SILENCE_MINUTES
from dashboard.pages.settings_live import forms

_FIELD: Final = re.compile(r"(?:[a-z_0-9]+\.)*([a-z_]+)(?: of [^:]*)?: (.+)", re.DOTALL)
"""How the API begins a refusal that is about a field: "rules.0.window: …", "secret of 'name': …"."""

Shown = dict[str, dict[str, Any]]
"""Component to the properties that it gets."""


@dataclass(frozen=True, kw_only=True)
class Deed:
    """A form that was sent, or a button that was pressed."""

    verb: str
    of: str
    """What it is about; empty: something new."""
    form: str
    """Empty: a button outside of forms."""
    fields: Mapping[str, str]


def parse_deed(data: Any) -> Deed | None:
    """The deed of a browser, which may send anything."""
    if not isinstance(data, Mapping) or not isinstance(data.get("verb"), str):
        return None
    fields = data.get("fields")
    known = fields if isinstance(fields, Mapping) else {}
    return Deed(
        verb=data["verb"],
        of=data["of"] if isinstance(data.get("of"), str) else "",
        form=data["form"] if isinstance(data.get("form"), str) else "",
        fields={str(name): value for name, value in known.items() if isinstance(value, str)},
    )


class FormActions:
    """Does them, for every page load alike."""

    def __init__(self, client: ApiClient, clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._clock = clock
        self._verbs: dict[str, Callable[[Deed], Awaitable[Shown]]] = {
            "new-rule": self._edit_rule,
            "edit-rule": self._edit_rule,
            "save-rule": self._save_rule,
            "try-rule": self._try_rule,
            "switch-rule": self._switch_rule,
            "delete-rule": self._delete_rule,
            "new-channel": self._edit_channel,
            "edit-channel": self._edit_channel,
            "save-channel": self._save_channel,
            "test-channel": self._test_channel,
            "switch-channel": self._switch_channel,
            "delete-channel": self._delete_channel,
            "save-quiet": self._save_quiet,
            "save-digest": self._save_digest,
            "save-silence": self._save_silence,
            "delete-silence": self._delete_silence,
            "save-token": self._make_token,
            "revoke-token": self._revoke_token,
            "acknowledge": self._acknowledge,
            "silence": self._silence,
        }

    async def do(self, deed: Deed) -> Shown:
        """What the page shows after it; what went wrong is among it."""
        work = self._verbs.get(deed.verb)
        if work is None:
            return {}
        try:
            return {ids.NOTICE: {"children": ""}, **await work(deed)}
        except FieldError as error:
            return _trouble(deed, {error.field: error.reason})
        except ApiError as error:
            if not deed.form:
                return {ids.NOTICE: {"children": f"That did not work: {error}"}}
            return _trouble(deed, _blamed(error, deed))

    async def _acknowledge(self, deed: Deed) -> Shown:
        """The page hears of it as of any change of an alert."""
        await self._client.acknowledge(deed.of)
        return {}

    async def _silence(self, deed: Deed) -> Shown:
        await self._client.silence(deed.of, SILENCE_MINUTES)
        return {}

    async def _edit_rule(self, deed: Deed) -> Shown:
        rule = await self._rule(deed.of) if deed.verb == "edit-rule" else None
        runs = await self._client.runs()
        return {
            ids.RULE_EDITOR: {"children": rules.editor(rule, runs)},
            ids.RULE_TRIED: {"data": None},
        }

    async def _save_rule(self, deed: Deed) -> Shown:
        known, taken = await self._rule_and_ids(deed.of)
        rule = await self._client.put_rule(rules.body(deed.fields, known, taken))
        runs = await self._client.runs()
        return {
            **await self._rule_list(),
            ids.RULE_EDITOR: {"children": rules.editor(rule, runs)},
            **_trouble(deed, {}, said="Saved. It counts from the next record on."),
        }

    async def _try_rule(self, deed: Deed) -> Shown:
        known, taken = await self._rule_and_ids(deed.of)
        body = rules.body(deed.fields, known, taken)
        kind, _, name = deed.fields.get("try_on", "").partition(":")
        if not name:
            raise FieldError("try_on", "there is no run yet to test it on")
        tried = await self._client.try_rule(
            body, run=name if kind == "run" else None, project=name if kind == "project" else None
        )
        times = "not have fired" if not tried.fired else f"have fired {tried.fired}×"
        return {
            ids.RULE_TRIED: {"data": {"rule": body, "tried": msgspec.to_builtins(tried)}},
            **_trouble(deed, {}, said=f"It would {times}."),
        }

    async def _switch_rule(self, deed: Deed) -> Shown:
        rule = await self._rule(deed.of)
        await self._client.put_rule({**msgspec.to_builtins(rule), "enabled": not rule.enabled})
        return await self._rule_list()

    async def _delete_rule(self, deed: Deed) -> Shown:
        await self._client.delete_rule(deed.of)
        return {
            **await self._rule_list(),
            ids.RULE_EDITOR: {"children": rules.welcome()},
            ids.RULE_TRIED: {"data": None},
        }

    async def _rule_list(self) -> Shown:
        return {ids.RULE_LIST: {"children": rules.items(await self._client.rules())}}

    async def _rule(self, rule_id: str) -> Rule:
        known, _ = await self._rule_and_ids(rule_id)
        if known is None:
            raise ApiRefusedError(404, "unknown_rule", "the rule was deleted meanwhile")
        return known

    async def _rule_and_ids(self, rule_id: str) -> tuple[Rule | None, list[str]]:
        found = await self._client.rules()
        return next((rule for rule in found if rule.id == rule_id), None), [rule.id for rule in found]

    async def _edit_channel(self, deed: Deed) -> Shown:
        channel = await self._channel(deed.of) if deed.verb == "edit-channel" else None
        return {ids.CHANNEL_EDITOR: {"children": settings.channel_editor(channel)}}

    async def _save_channel(self, deed: Deed) -> Shown:
        if deed.of:
            known = await self._channel(deed.of)
            changed = await self._client.put_channel(deed.of, settings.channel_body(deed.fields, known))
            made = {changed.id: changed}
        else:
            before = await self._client.channels()
            sent = [settings.as_sent(channel, id=channel.id) for channel in before]
            stored = await self._client.put_channels([*sent, settings.channel_body(deed.fields, None)])
            made = {channel.id: channel for channel in stored}
        channels = [made.get(channel.id, channel) for channel in await self._client.channels()]
        return {
            ids.CHANNEL_LIST: {"children": settings.channels(channels, self._clock())},
            ids.CHANNEL_EDITOR: {"children": None},
        }

    async def _test_channel(self, deed: Deed) -> Shown:
        test = await self._client.test_channel(deed.of)
        said = "The test message was taken." if test.ok else f"The test message was not taken: {test.answer}"
        return await self._channel_list({deed.of: said})

    async def _switch_channel(self, deed: Deed) -> Shown:
        channel = await self._channel(deed.of)
        await self._client.put_channel(channel.id, settings.as_sent(channel, enabled=not channel.enabled))
        return await self._channel_list({})

    async def _delete_channel(self, deed: Deed) -> Shown:
        await self._client.delete_channel(deed.of)
        return {**await self._channel_list({}), ids.CHANNEL_EDITOR: {"children": None}}

    async def _channel(self, channel_id: str) -> Channel:
        for channel in await self._client.channels():
            if channel.id == channel_id:
                return channel
        raise ApiRefusedError(404, "unknown_channel", "the channel was removed meanwhile")

    async def _channel_list(self, said: Mapping[str, str]) -> Shown:
        found = await self._client.channels()
        return {ids.CHANNEL_LIST: {"children": settings.channels(found, self._clock(), said)}}

    async def _save_quiet(self, deed: Deed) -> Shown:
        hours = settings.quiet_hours(deed.fields)
        await self._change_notifications(quiet_hours=hours)
        return _trouble(deed, {}, said="Saved.")

    async def _save_digest(self, deed: Deed) -> Shown:
        made, cooldown = settings.digest(deed.fields)
        await self._change_notifications(digest=made, cooldown_seconds=cooldown)
        return _trouble(deed, {}, said="Saved.")

    async def _save_silence(self, deed: Deed) -> Shown:
        made = settings.silence(deed.fields, self._clock(), str(uuid.uuid4()))
        before = await self._client.notifications()
        return await self._silence_list(await self._change_notifications(silences=(*before.silences, made)))

    async def _delete_silence(self, deed: Deed) -> Shown:
        before = await self._client.notifications()
        kept = tuple(silence for silence in before.silences if silence.id != deed.of)
        return await self._silence_list(await self._change_notifications(silences=kept))

    async def _silence_list(self, found: Notifications) -> Shown:
        runs = await self._client.runs()
        return {ids.SILENCE_LIST: {"children": forms(found, runs, self._clock())[ids.SILENCE_LIST]}}

    async def _make_token(self, deed: Deed) -> Shown:
        made = await self._client.make_token(
            scope=deed.fields.get("scope", ""),
            project=optional(deed.fields, "project"),
            label=deed.fields.get("label", "").strip(),
        )
        return await self._token_list(made)

    async def _revoke_token(self, deed: Deed) -> Shown:
        if deed.of.isdecimal():
            await self._client.revoke_token(int(deed.of))
        return await self._token_list(None)

    async def _token_list(self, made: Token | None) -> Shown:
        found = await self._client.tokens()
        return {ids.TOKEN_LIST: {"children": settings.tokens(found, self._clock(), made)}}

    async def _change_notifications(self, **changes: Any) -> Notifications:
        """What is over is left out, so that the list stays short."""
        before = await self._client.notifications()
        now = self._clock()
        wanted = msgspec.structs.replace(before, **changes)
        held = tuple(silence for silence in wanted.silences if silence.until > now)
        return await self._client.put_notifications(msgspec.structs.replace(wanted, silences=held))


def _trouble(deed: Deed, fields: Mapping[str, str], *, said: str = "") -> Shown:
    """What forms.js shows at the fields, and beside the buttons."""
    number = uuid.uuid4().hex  # the same trouble twice is shown twice
    return {ids.TROUBLE: {"data": {"form": deed.form, "fields": dict(fields), "said": said, "number": number}}}


def _blamed(error: ApiError, deed: Deed) -> dict[str, str]:
    """The field that a refusal is about, and why; without a name where it is about none of the form."""
    if isinstance(error, ApiRefusedError):
        found = _FIELD.fullmatch(error.message)
        if found is not None and found.group(1) in deed.fields:
            return {found.group(1): found.group(2)}
        return {"": error.message}
    return {"": str(error)}
