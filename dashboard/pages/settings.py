"""The settings: channels, quiet hours, digest, silences. Pure. A secret is typed here and never shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from dash import html
from dash.development.base_component import Component

from client_sdk.answers import Channel, Digest, Notifications, QuietHours, RunSummary, Silence, Token
from client_sdk.vocabulary import LEVEL_RANK, AlertKind, AlertLevel
from dashboard import ids
from dashboard.forms.fields import FieldError, Options, button, choice, form, number, optional, text, whole
from dashboard.numbers import duration, exact

CHANNEL_FORM: Final = "channel"
QUIET: Final = "quiet"
DIGEST: Final = "digest"
SILENCE: Final = "silence"
TOKEN: Final = "token"  # noqa: S105 - the name of a form
SCOPES: Final[Options] = (("read", "read"), ("write", "write: for trainings"), ("admin", "admin"))
KINDS: Final[Options] = (
    ("slack-webhook", "Slack, incoming webhook"),
    ("slack-bot", "Slack, bot token"),
    ("apprise", "another service, apprise URL"),
    ("webhook", "signed JSON webhook"),
)
LEVELS: Final[Options] = tuple(
    (level.value, f"{level} only" if level is max(AlertLevel, key=LEVEL_RANK.__getitem__) else f"{level} and above")
    for level in AlertLevel
)
ALERT_KINDS: Final = tuple(kind.value for kind in AlertKind)


def layout() -> Component:
    """The page before its first data."""
    skeleton = html.Div(html.Span(className="skeleton"), className="item")
    return html.Div(
        [
            html.H1("Settings"),
            html.P("Where alerts go, and when they keep quiet.", className="muted lead"),
            html.Div(
                [
                    html.Section(
                        [
                            html.H2("Channels", className="part"),
                            html.Div([skeleton, skeleton], id=ids.CHANNEL_LIST, className="card items"),
                            html.Div(button("New channel", "new-channel", of="new"), className="form-buttons"),
                            html.Div(id=ids.CHANNEL_EDITOR),
                            html.H2("Tokens", className="part later"),
                            html.Div([skeleton], id=ids.TOKEN_LIST, className="card items"),
                        ]
                    ),
                    html.Section(
                        [
                            html.H2("Quiet hours", className="part"),
                            html.Div(id=ids.QUIET_FORM, className="card editor"),
                            html.H2("Many at once", className="part"),
                            html.Div(id=ids.DIGEST_FORM, className="card editor"),
                            html.H2("Silences", className="part"),
                            html.Div(id=ids.SILENCE_LIST, className="card items"),
                        ]
                    ),
                ],
                className="halves",
            ),
        ],
        className="page",
    )


def closed() -> Component:
    """For those who may not change them."""
    words = "Administrators of all projects change the settings; your login opens less."
    return html.Div([html.H1("Settings"), html.P(words, className="muted")], className="lonely")


def channels(found: Sequence[Channel], now: float, said: Mapping[str, str] | None = None) -> list[Component]:
    """The list. ``said``: by channel, what became of the test that was just sent."""
    if not found:
        words = "No channel yet: alerts are on the pages and in the training loop alone."
        return [html.P(words, className="muted none")]
    return [_channel(channel, now, (said or {}).get(channel.id, "")) for channel in found]


def _channel(channel: Channel, now: float, said: str) -> Component:
    level = dict(LEVELS).get(channel.min_level, channel.min_level)
    words = [dict(KINDS).get(channel.kind, channel.kind), channel.target, level]
    words += [f"project {channel.project}"] if channel.project else []
    words += [", ".join(channel.kinds)] if channel.kinds else []
    state: list[Any] = []
    if channel.last_sent_at is not None:
        state.append(html.P(f"last sent {duration(now - channel.last_sent_at)} ago", className="note"))
    if channel.disabled_reason:
        state.append(html.P(channel.disabled_reason, className="danger"))
    elif channel.last_error:
        state.append(html.P(f"last error: {channel.last_error}", className="warn"))
    if channel.signing_key:
        state.append(html.P(["Signing key, shown this once: ", html.Code(channel.signing_key)], className="warn key"))
    return html.Div(
        [
            html.Div(
                [
                    html.Div(
                        [html.B(channel.name), None if channel.enabled else html.Span("off", className="pill")],
                        className="item-name",
                    ),
                    html.P(" · ".join(word for word in words if word), className="muted"),
                    *state,
                    html.P(said, className="note said") if said else None,
                ],
                className="item-words",
            ),
            html.Div(
                [
                    button("Edit", "edit-channel", of=channel.id),
                    button("Send a test", "test-channel", of=channel.id),
                    button("Switch off" if channel.enabled else "Switch on", "switch-channel", of=channel.id),
                    button("Remove", "delete-channel", of=channel.id, sure="Really remove?"),
                ],
                className="item-buttons",
            ),
        ],
        className="item" if channel.enabled else "item off",
    )


def channel_editor(channel: Channel | None) -> Component:
    """The form of one channel, or of a new one."""
    known = channel if channel is not None else Channel(id="", name="", kind="slack-webhook")
    kept = "" if channel is None else "empty keeps the present one"
    fields = [
        text("name", "Name", known.name, placeholder="training alerts"),
        choice("kind", "Kind", KINDS, known.kind),
        text("secret", "Secret", kind="password",
             hint=kept or {
                 "on-webhook-url": "the webhook's URL; encrypted, never shown again",
                 "on-token": "the token, xoxb-…; encrypted, never shown again",
                 "on-apprise": "the apprise URL, such as discord://…; encrypted, never shown again",
             }),
        text("channel", "Slack channel", str(known.settings.get("channel", "")), only="of-bot",
             placeholder="#training"),
        choice("min_level", "Level", LEVELS, known.min_level),
        text("project", "Project", known.project or "", placeholder="all"),
        text("kinds", "Alert kinds", ", ".join(known.kinds or ()), placeholder="all",
             hint="such as " + ", ".join(ALERT_KINDS)),
    ]  # fmt: skip
    return html.Div(
        [
            html.H2("New channel" if channel is None else f"Channel: {known.name}"),
            form(
                CHANNEL_FORM,
                fields,
                [button("Save", "save-channel", strong=True)],
                of=known.id,
                choices={"kind": known.kind},
            ),
        ],
        className="card editor",
    )


def channel_body(fields: Mapping[str, str], known: Channel | None) -> dict[str, Any]:
    """The channel that was filled in, as the API takes it. Raises `FieldError`."""
    name, secret = optional(fields, "name"), optional(fields, "secret")
    if name is None:
        raise FieldError("name", "a name is needed")
    if secret is None and known is None:
        raise FieldError("secret", "a new channel needs one")
    kinds = [kind for kind in fields.get("kinds", "").replace(",", " ").split() if kind]
    for kind in kinds:
        if kind not in ALERT_KINDS:
            raise FieldError("kinds", f"there is no kind {kind!r}")
    settings = dict(known.settings) if known is not None else {}
    settings.pop("channel", None)
    kind = fields.get("kind", "")
    if kind == "slack-bot":
        settings["channel"] = optional(fields, "channel")
        if settings["channel"] is None:
            raise FieldError("channel", "a bot needs to know where to write: #name or an id")
    return {
        "name": name,
        "kind": kind,
        "project": optional(fields, "project"),
        "min_level": fields.get("min_level", ""),
        "kinds": kinds or None,
        "enabled": known.enabled if known is not None else True,
        "settings": settings,
        **({} if secret is None else {"secret": secret}),
    }


def as_sent(channel: Channel, **changes: Any) -> dict[str, Any]:
    """A channel as the API takes it, without its secret, which it keeps."""
    return {
        "name": channel.name,
        "kind": channel.kind,
        "project": channel.project,
        "min_level": channel.min_level,
        "kinds": None if channel.kinds is None else list(channel.kinds),
        "enabled": channel.enabled,
        "settings": channel.settings,
        **changes,
    }


def quiet_form(found: Notifications) -> list[Component]:
    """When only grave alerts are told."""
    hours = found.quiet_hours
    known = hours if hours is not None else QuietHours(start="22:00", end="07:00")
    fields = [
        choice("on", "Quiet hours", (("no", "none"), ("yes", "every day")), "no" if hours is None else "yes"),
        text("start", "From", known.start, only="when-on", placeholder="22:00"),
        text("end", "To", known.end, only="when-on", placeholder="07:00"),
        text("timezone", "Time zone", known.timezone, only="when-on", hint="such as Europe/Berlin"),
        choice("min_level", "Told all the same", LEVELS, known.min_level, only="when-on"),
    ]
    on = "no" if hours is None else "yes"
    return [form(QUIET, fields, [button("Save", "save-quiet")], of=f"{on}", choices={"on": on})]


def quiet_hours(fields: Mapping[str, str]) -> QuietHours | None:
    """What was filled in. Raises `FieldError`."""
    if fields.get("on") != "yes":
        return None
    for name in ("start", "end"):
        try:
            datetime.strptime(fields.get(name, "").strip(), "%H:%M").replace(tzinfo=UTC)
        except ValueError:
            raise FieldError(name, "a time of the day: 22:00") from None
    return QuietHours(
        start=_padded(fields["start"]),
        end=_padded(fields["end"]),
        timezone=optional(fields, "timezone") or "UTC",
        min_level=fields.get("min_level", AlertLevel.CRITICAL),
    )


def _padded(time: str) -> str:
    return time.strip().zfill(5)


def digest_form(found: Notifications) -> list[Component]:
    """Of many alerts one message."""
    fields = [
        text("threshold", "Alerts that make a digest", str(found.digest.threshold), mode="numeric",
             hint="so many runs together"),
        text("window_seconds", "within seconds", f"{found.digest.window_seconds:g}"),
        text("cooldown_minutes", "Cooldown, minutes", exact(found.cooldown_seconds / 60),
             hint="between two messages of a kind in a run"),
    ]  # fmt: skip
    return [form(DIGEST, fields, [button("Save", "save-digest")], choices={})]


def digest(fields: Mapping[str, str]) -> tuple[Digest, float]:
    """The digest and the cooldown in seconds. Raises `FieldError`."""
    made = Digest(window_seconds=number(fields, "window_seconds"), threshold=whole(fields, "threshold"))
    return made, 60 * number(fields, "cooldown_minutes")


def silences(found: Notifications, runs: Sequence[RunSummary], now: float) -> list[Component]:
    """Those that hold, and the form of a new one."""
    names = {run.id: run.title for run in runs}
    held = [silence for silence in found.silences if silence.until > now]
    shown: list[Component] = [_silence(silence, names, now) for silence in held]
    if not held:
        shown.append(html.P("Nothing is silenced.", className="muted none"))
    fields = [
        choice("run_id", "Run", [("", "all runs"), *((run.id, run.title) for run in runs[:50])], ""),
        text("project", "Project", placeholder="all"),
        choice("kind", "Alerts", [("", "of every kind"), *((kind, kind) for kind in ALERT_KINDS)], ""),
        text("hours", "For hours", "1"),
        text("reason", "Reason", placeholder="maintenance"),
    ]
    shown.append(html.Div(form(SILENCE, fields, [button("Silence", "save-silence")], choices={}), className="item"))
    return shown


def _silence(silence: Silence, names: Mapping[str, str], now: float) -> Component:
    what = [
        silence.kind.replace("-", " ") if silence.kind else "every alert",
        f"of {names.get(silence.run_id, silence.run_id[:8])}" if silence.run_id else "",
        f"of project {silence.project}" if silence.project else "",
    ]
    left = " · ".join(filter(None, (f"for another {duration(silence.until - now)}", silence.reason)))
    return html.Div(
        [
            html.Div(
                [
                    html.B(" ".join(part for part in what if part)),
                    html.P(left, className="muted"),
                ],
                className="item-words",
            ),
            html.Div(button("End", "delete-silence", of=silence.id), className="item-buttons"),
        ],
        className="item",
    )


def silence(fields: Mapping[str, str], now: float, name: str) -> Silence:
    """The one that was filled in. Raises `FieldError`."""
    hours = number(fields, "hours")
    if not 0 < hours <= 24 * 365:
        raise FieldError("hours", "more than 0, at most a year")
    return Silence(
        id=name,
        until=now + 3600 * hours,
        run_id=optional(fields, "run_id"),
        project=optional(fields, "project"),
        kind=optional(fields, "kind"),
        reason=fields.get("reason", "").strip(),
    )


def tokens(found: Sequence[Token], now: float, made: Token | None = None) -> list[Component]:
    """Those that open something, and the form of a new one. ``made``: the one whose secret is shown, this once."""
    valid = [token for token in found if token.revoked_at is None]
    shown: list[Component] = [_token(token, now, made) for token in valid]
    if not valid:
        shown.append(html.P("No token but the server's own.", className="muted none"))
    fields = [
        text("label", "What for", placeholder="cluster"),
        choice("scope", "Scope", SCOPES, "write"),
        text("project", "Project", placeholder="all"),
    ]
    new = form(TOKEN, fields, [button("New token", "save-token")], of=str(len(found)), choices={})
    return [*shown, html.Div(new, className="item")]


def _token(token: Token, now: float, made: Token | None) -> Component:
    used = "never used" if token.last_used_at is None else f"last used {duration(now - token.last_used_at)} ago"
    words = [token.scope, f"project {token.project}" if token.project else "all projects", used]
    secret = made.token if made is not None and made.id == token.id else None
    return html.Div(
        [
            html.Div(
                [
                    html.B(token.label or f"token {token.id}"),
                    html.P(" · ".join(words), className="muted"),
                    html.P(["Copy it now, it is shown this once: ", html.Code(secret)], className="warn key")
                    if secret
                    else None,
                ],
                className="item-words",
            ),
            html.Div(
                button("Revoke", "revoke-token", of=str(token.id), sure="Really revoke?"), className="item-buttons"
            ),
        ],
        className="item",
    )
