"""Components of the settings: the layout of the page, quiet hours, digests, silences and tokens. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from dash import html
from dash.development.base_component import Component

from client_sdk.answers import Digest, Notifications, QuietHours, RunSummary, Silence, Token
from client_sdk.vocabulary import AlertLevel
from dashboard import ids
from dashboard.forms.fields import FieldError, Options, When, button, choice, form, number, optional, text, whole
from dashboard.numbers import duration, exact
from dashboard.pages.channel_form import ALERT_KINDS, LEVELS

QUIET: Final = "quiet"
DIGEST: Final = "digest"
SILENCE: Final = "silence"
TOKEN: Final = "token"  # noqa: S105 - the name of a form
SCOPES: Final[Options] = (("read", "read"), ("write", "write: for trainings"), ("admin", "admin"))


def layout() -> Component:
    """Return the page before its first data."""
    skeleton = html.Div(html.Span(className="skeleton"), className="item")
    return html.Div(
        [
            html.H1("Settings"),
            html.P("Where notifications go, and when none are sent.", className="muted lead"),
            html.Div(
                [
                    html.Section(
                        [
                            html.H2("Channels", className="part"),
                            html.Div([skeleton, skeleton], id=ids.CHANNEL_LIST, className="card items"),
                            html.Div(button("New channel", "new-channel", subject="new"), className="form-buttons"),
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
    """Return the page for people who may not change the settings."""
    words = "Only administrators of all projects can change the settings."
    return html.Div([html.H1("Settings"), html.P(words, className="muted")], className="lonely")


def quiet_form(found: Notifications) -> list[Component]:
    """Return the form of the quiet hours."""
    hours = found.quiet_hours
    known = hours if hours is not None else QuietHours(start="22:00", end="07:00")
    on = "no" if hours is None else "yes"
    when = When(field="on", values=("yes",), current=on)
    fields = [
        choice("on", "Quiet hours", (("no", "none"), ("yes", "every day")), on),
        text("start", "From", known.start, when=when, placeholder="22:00"),
        text("end", "To", known.end, when=when, placeholder="07:00"),
        text("timezone", "Time zone", known.timezone, when=when, hint="such as Europe/Berlin"),
        choice("min_level", "Sent nevertheless", LEVELS, known.min_level, when=when),
    ]
    return [form(QUIET, fields, [button("Save", "save-quiet")], subject=on)]


def quiet_hours(fields: Mapping[str, str]) -> QuietHours | None:
    """Return the submitted quiet hours, or None if there are none. Raises `FieldError`."""
    if fields.get("on") != "yes":
        return None
    for name in ("start", "end"):
        try:
            datetime.strptime(fields.get(name, "").strip(), "%H:%M").replace(tzinfo=UTC)
        except ValueError:
            raise FieldError(name, "enter a time of day, for example 22:00") from None
    return QuietHours(
        start=_padded(fields["start"]),
        end=_padded(fields["end"]),
        timezone=optional(fields, "timezone") or "UTC",
        min_level=fields.get("min_level", AlertLevel.CRITICAL),
    )


def _padded(time: str) -> str:
    return time.strip().zfill(5)


def digest_form(found: Notifications) -> list[Component]:
    """Return the form of the digest and the cooldown."""
    fields = [
        text("threshold", "Alerts that make a digest", str(found.digest.threshold), mode="numeric",
             hint="alerts of different runs"),
        text("window_seconds", "within seconds", f"{found.digest.window_seconds:g}"),
        text("cooldown_minutes", "Cooldown, minutes", exact(found.cooldown_seconds / 60),
             hint="between two messages of a kind in a run"),
    ]  # fmt: skip
    return [form(DIGEST, fields, [button("Save", "save-digest")])]


def digest(fields: Mapping[str, str]) -> tuple[Digest, float]:
    """Return the submitted digest, and the cooldown in seconds. Raises `FieldError`."""
    made = Digest(window_seconds=number(fields, "window_seconds"), threshold=whole(fields, "threshold"))
    return made, 60 * number(fields, "cooldown_minutes")


def silences(found: Notifications, runs: Sequence[RunSummary], now: float) -> list[Component]:
    """Return the current silences, and the form of a new one."""
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
    shown.append(html.Div(form(SILENCE, fields, [button("Silence", "save-silence")]), className="item"))
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
            html.Div(button("End", "delete-silence", subject=silence.id), className="item-buttons"),
        ],
        className="item",
    )


def silence(fields: Mapping[str, str], now: float, name: str) -> Silence:
    """Return the submitted silence with the id ``name``. Raises `FieldError`."""
    hours = number(fields, "hours")
    if not 0 < hours <= 24 * 365:
        raise FieldError("hours", "enter more than 0 hours and at most a year")
    return Silence(
        id=name,
        until=now + 3600 * hours,
        run_id=optional(fields, "run_id"),
        project=optional(fields, "project"),
        kind=optional(fields, "kind"),
        reason=fields.get("reason", "").strip(),
    )


def tokens(found: Sequence[Token], now: float, created: Token | None = None) -> list[Component]:
    """Return the valid tokens, and the form of a new one. ``created`` is a new token, whose secret is shown once."""
    valid = [token for token in found if token.revoked_at is None]
    shown: list[Component] = [_token(token, now, created) for token in valid]
    if not valid:
        shown.append(html.P("No token except the server's own.", className="muted none"))
    fields = [
        text("label", "What for", placeholder="cluster"),
        choice("scope", "Scope", SCOPES, "write"),
        text("project", "Project", placeholder="all"),
    ]
    new = form(TOKEN, fields, [button("New token", "save-token")], subject=str(len(found)))
    return [*shown, html.Div(new, className="item")]


def _token(token: Token, now: float, created: Token | None) -> Component:
    used = "never used" if token.last_used_at is None else f"last used {duration(now - token.last_used_at)} ago"
    words = [token.scope, f"project {token.project}" if token.project else "all projects", used]
    secret = created.token if created is not None and created.id == token.id else None
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
                button("Revoke", "revoke-token", subject=str(token.id), sure="Really revoke?"), className="item-buttons"
            ),
        ],
        className="item",
    )


def notification_forms(found: Notifications, runs: Sequence[RunSummary], now: float) -> dict[str, list[Component]]:
    """Return the forms of the settings of all channels, keyed by the id of their component."""
    return {
        ids.QUIET_FORM: quiet_form(found),
        ids.DIGEST_FORM: digest_form(found),
        ids.SILENCE_LIST: silences(found, runs, now),
    }
