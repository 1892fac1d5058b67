"""Fields of forms, and what was filled into them. Pure.

A form is an `html.Form` with `data-form`; forms.js sends it and shows what is wrong at the field of that name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dash import dcc, html
from dash.development.base_component import Component

from dashboard.forms.attributes import aria, data

Options = Sequence[tuple[str, str]]
"""(value, word)."""
Hint = str | Mapping[str, str]
"""A few words under a field; or by class of the stylesheet, which says when each is shown."""


class FieldError(ValueError):
    """What was filled into a field cannot be meant."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def text(
    name: str,
    label: str,
    value: str = "",
    *,
    hint: Hint = "",
    only: str = "",
    placeholder: str = "",
    kind: Literal["text", "password"] = "text",
    mode: Literal["numeric"] | None = None,
) -> Component:
    """One line of text. ``only``: a class of the stylesheet that says when it is shown."""
    control = dcc.Input(
        id={"field": name},
        name=name,
        type=kind,
        value=value,
        placeholder=placeholder,
        inputMode=mode,
        autoComplete="new-password" if kind == "password" else "off",
        className="entry",
    )
    return _field(label, control, hint, only)


def choice(name: str, label: str, options: Options, value: str, *, hint: str = "", only: str = "") -> Component:
    """One of several. What is chosen may decide which other fields are shown: it stands in an attribute of the form."""
    items = [html.Option(word, value=option, selected=option == value) for option, word in options]
    control = html.Select(items, name=name, className="entry", **data(choice="yes"))
    return _field(label, control, hint, only)


def form(
    name: str, fields: Sequence[Component], buttons: Sequence[Component], *, of: str = "", choices: Mapping[str, str]
) -> Component:
    """``of``: what it is about; a form about something else is another one, with nothing left in it.

    ``choices``: values of its `choice` fields, so that it begins with the right fields shown.
    """
    shown = {field.replace("_", "-"): value for field, value in choices.items()}
    return html.Form(
        [
            html.Div(fields, className="fields"),
            html.P(className="field-error form-error", role="alert"),
            html.Div([*buttons, html.Span(className="form-said muted", role="status")], className="form-buttons"),
        ],
        key=f"{name}:{of}",
        className="form",
        **data(form=name, of=of, **shown),
    )


def button(word: str, verb: str, *, of: str | None = None, sure: str = "", strong: bool = False) -> Component:
    """In a form it sends the form. ``sure``: what it says to be pressed once more."""
    more = {} if of is None else {"of": of}
    more |= {"sure": sure} if sure else {}
    kind: Literal["button", "submit"] = "submit" if of is None else "button"
    return html.Button(word, type=kind, className="button strong" if strong else "button", **data(verb=verb, **more))


def number(fields: Mapping[str, str], name: str) -> float:
    """Raises `FieldError`."""
    said = fields.get(name, "").strip().replace(",", "").replace("_", "")
    try:
        value = float(said)
    except ValueError:
        raise FieldError(name, "a number, for example 0.5 or 1e-4" if said else "a number is needed here") from None
    if not math.isfinite(value):
        raise FieldError(name, "a finite number")
    return value


def whole(fields: Mapping[str, str], name: str) -> int:
    """Raises `FieldError`."""
    value = number(fields, name)
    if value != int(value):
        raise FieldError(name, "a whole number")
    return int(value)


def optional(fields: Mapping[str, str], name: str) -> str | None:
    """The text, None where the field was left empty."""
    return fields.get(name, "").strip() or None


def _field(label: str, control: Component, hint: Hint, only: str) -> Component:
    parts: list[Any] = [html.Span(label, className="field-label"), control]
    hints = {"": hint} if isinstance(hint, str) else hint
    parts += [html.Span(words, className=f"note {when}".strip()) for when, words in hints.items() if words]
    parts.append(html.Span(className="field-error", **aria(live="polite")))
    return html.Label(parts, className=f"field {only}".strip())
