"""Channels of notifications: their list, and the form of one channel. Pure.

The form is built from what the API says about the kinds of channels. Secrets are entered here and never shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from dash import html
from dash.development.base_component import Component

from client_sdk.answers import Channel, ChannelField, ChannelKind
from client_sdk.vocabulary import LEVEL_RANK, AlertKind, AlertLevel
from dashboard.forms.fields import FieldError, Options, When, button, choice, form, optional, text
from dashboard.numbers import duration

FORM: Final = "channel"
LEVELS: Final[Options] = tuple(
    (level.value, f"{level} only" if level is max(AlertLevel, key=LEVEL_RANK.__getitem__) else f"{level} and above")
    for level in AlertLevel
)
ALERT_KINDS: Final = tuple(kind.value for kind in AlertKind)


def channel_list(
    channels: Sequence[Channel], kinds: Sequence[ChannelKind], now: float, results: Mapping[str, str] | None = None
) -> list[Component]:
    """Return the list of channels. ``results`` holds results of test messages that were just sent, by channel id."""
    if not channels:
        words = "No channel yet: alerts are shown on the pages and in the training loop only."
        return [html.P(words, className="muted none")]
    labels = {kind.name: kind.label for kind in kinds}
    return [_item(channel, labels, now, (results or {}).get(channel.id, "")) for channel in channels]


def channel_editor(channel: Channel | None, kinds: Sequence[ChannelKind]) -> Component:
    """Return the form of a channel, or of a new one if ``channel`` is None."""
    known = channel if channel is not None else Channel(id="", name="", kind=kinds[0].name if kinds else "")
    fields = [
        text("name", "Name", known.name, placeholder="training alerts"),
        choice("kind", "Kind", [(kind.name, kind.label) for kind in kinds], known.kind),
        *_kind_fields(known, kinds),
        choice("min_level", "Level", LEVELS, known.min_level),
        text("project", "Project", known.project or "", placeholder="all"),
        text(
            "kinds", "Alert kinds", ", ".join(known.kinds or ()), placeholder="all",
            hint="such as " + ", ".join(ALERT_KINDS),
        ),
    ]  # fmt: skip
    return html.Div(
        [
            html.H2("New channel" if channel is None else f"Channel: {known.name}"),
            form(
                FORM,
                fields,
                [button("Save", "save-channel", strong=True)],
                subject=known.id,
            ),
        ],
        className="card editor",
    )


def channel_body(fields: Mapping[str, str], known: Channel | None, kinds: Sequence[ChannelKind]) -> dict[str, Any]:
    """Return the channel in a submitted form as the API accepts it.

    ``known`` is the stored channel that the form edits, None for a new one. Raises `FieldError`.
    """
    name = optional(fields, "name")
    if name is None:
        raise FieldError("name", "a channel needs a name")
    alert_kinds = fields.get("kinds", "").replace(",", " ").split()
    for alert_kind in alert_kinds:
        if alert_kind not in ALERT_KINDS:
            raise FieldError("kinds", f"there is no kind {alert_kind!r}")
    chosen = next((kind for kind in kinds if kind.name == fields.get("kind")), None)
    if chosen is None:
        raise FieldError("kind", "choose one of the kinds")
    in_forms = {field.name for kind in kinds for field in _form_fields(kind) if field.in_settings}
    settings = {
        key: value for key, value in (known.settings if known is not None else {}).items() if key not in in_forms
    }
    secrets: dict[str, str] = {}
    for field in _form_fields(chosen):
        value = optional(fields, field.name)
        if value is None:
            keeps_stored = field.secret and known is not None
            if field.required and not keeps_stored:
                raise FieldError(field.name, f"{field.label} is required")
        elif field.in_settings:
            settings[field.name] = value
        else:
            secrets[field.name] = value
    return {
        "name": name,
        "kind": chosen.name,
        "project": optional(fields, "project"),
        "min_level": fields.get("min_level", ""),
        "kinds": alert_kinds or None,
        "enabled": known.enabled if known is not None else True,
        "settings": settings,
        **secrets,
    }


def unchanged(channel: Channel, **changes: Any) -> dict[str, Any]:
    """Return a stored channel as the API accepts it, apart from ``changes``. It keeps its secret."""
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


def _kind_fields(known: Channel, kinds: Sequence[ChannelKind]) -> list[Component]:
    """Return the fields of all kinds. Kinds share the fields with the same name; the chosen kind decides what shows."""
    users: dict[str, list[tuple[ChannelKind, ChannelField]]] = {}
    for kind in kinds:
        for field in _form_fields(kind):
            users.setdefault(field.name, []).append((kind, field))
    shown = []
    for name, found in users.items():
        first = found[0][1]
        kept = first.secret and bool(known.id)
        hints = [
            (When(field="kind", values=(kind.name,), current=known.kind), field.help)
            for kind, field in found
            if field.help
        ]
        shown.append(
            text(
                name,
                first.label,
                "" if first.secret else str(known.settings.get(name) or ""),
                kind="password" if first.secret else "text",
                placeholder=first.placeholder,
                hint="leave empty to keep the current value" if kept else hints,
                when=When(field="kind", values=tuple(kind.name for kind, _ in found), current=known.kind),
            )
        )
    return shown


def _form_fields(kind: ChannelKind) -> list[ChannelField]:
    return [field for field in kind.fields if not field.advanced]


def _item(channel: Channel, labels: Mapping[str, str], now: float, result: str) -> Component:
    level = dict(LEVELS).get(channel.min_level, channel.min_level)
    words = [labels.get(channel.kind, channel.kind), channel.target, level]
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
                    html.P(result, className="note said") if result else None,
                ],
                className="item-words",
            ),
            html.Div(
                [
                    button("Edit", "edit-channel", subject=channel.id),
                    button("Send a test", "test-channel", subject=channel.id),
                    button("Switch off" if channel.enabled else "Switch on", "switch-channel", subject=channel.id),
                    button("Remove", "delete-channel", subject=channel.id, sure="Really remove?"),
                ],
                className="item-buttons",
            ),
        ],
        className="item" if channel.enabled else "item off",
    )
