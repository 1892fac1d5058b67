"""Components of forms, and the parsing of what was typed into them. Pure.

A form is an `html.Form` with the attribute `data-form`. forms.js sends it and shows errors at the named fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dash import dcc, html
from dash.development.base_component import Component

from dashboard.forms.attributes import aria, data

Options = Sequence[tuple[str, str]]
"""Options of a choice as pairs of value and label."""


@dataclass(frozen=True, kw_only=True)
class When:
    """Condition on a choice of the same form under which a field or note is shown. forms.js applies later choices."""

    field: str
    """Name of the `choice` field."""
    values: tuple[str, ...]
    """Values of the choice that fulfil the condition."""
    current: str
    """Value of the choice when the form is rendered."""

    def attributes(self) -> dict[str, Any]:
        """Return the HTML attributes of the component that is shown or hidden."""
        return {"hidden": self.current not in self.values, **data(when=self.field, values=" ".join(self.values))}


Hint = str | Sequence[tuple[When, str]]
"""Note under a field, or several notes, each with its condition."""


class FieldError(ValueError):
    """Invalid text in a field of a form."""

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
    when: When | None = None,
    placeholder: str = "",
    kind: Literal["text", "password"] = "text",
    mode: Literal["numeric"] | None = None,
) -> Component:
    """Return a field with one line of text. ``when``: condition under which it is shown; None shows it always."""
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
    return _field(label, control, hint, when)


def long_text(name: str, label: str, value: str = "", *, hint: Hint = "", placeholder: str = "") -> Component:
    """Return a field with several lines of text."""
    control = dcc.Textarea(
        id={"field": name}, name=name, value=value, placeholder=placeholder, rows=5, className="entry long"
    )
    return _field(label, control, hint, None)


def choice(
    name: str, label: str, options: Options, value: str, *, hint: str = "", when: When | None = None
) -> Component:
    """Return a field with a list to choose from. ``when``: condition under which it is shown; None shows it always."""
    items = [html.Option(word, value=option, selected=option == value) for option, word in options]
    control = html.Select(items, name=name, className="entry")
    return _field(label, control, hint, when)


def form(name: str, fields: Sequence[Component], buttons: Sequence[Component], *, subject: str = "") -> Component:
    """Return a form with its buttons and the place for its message.

    ``subject``: id of the object that the form edits; a form with another id is rendered anew, without any typed text.
    """
    return html.Form(
        [
            html.Div(fields, className="fields"),
            html.P(className="field-error form-error", role="alert"),
            html.Div([*buttons, html.Span(className="form-message muted", role="status")], className="form-buttons"),
        ],
        key=f"{name}:{subject}",
        className="form",
        **data(form=name, subject=subject),
    )


def button(word: str, verb: str, *, subject: str | None = None, sure: str = "", strong: bool = False) -> Component:
    """Return a button that performs an action. Without ``subject`` it submits its form.

    ``sure``: question that replaces the label after the first press; the second press performs the action.
    """
    more = {} if subject is None else {"subject": subject}
    more |= {"sure": sure} if sure else {}
    kind: Literal["button", "submit"] = "submit" if subject is None else "button"
    return html.Button(word, type=kind, className="button strong" if strong else "button", **data(verb=verb, **more))


def number(fields: Mapping[str, str], name: str) -> float:
    """Return the number in a field. Raises `FieldError` if the text is not a finite number."""
    typed = fields.get(name, "").strip().replace(",", "").replace("_", "")
    try:
        value = float(typed)
    except ValueError:
        raise FieldError(name, "a number, for example 0.5 or 1e-4" if typed else "a number is needed here") from None
    if not math.isfinite(value):
        raise FieldError(name, "a finite number")
    return value


def whole(fields: Mapping[str, str], name: str) -> int:
    """Return the whole number in a field. Raises `FieldError` if the text is not a whole number."""
    value = number(fields, name)
    if value != int(value):
        raise FieldError(name, "a whole number")
    return int(value)


def optional(fields: Mapping[str, str], name: str) -> str | None:
    """Return the text of a field, or None if the field is empty."""
    return fields.get(name, "").strip() or None


def _field(label: str, control: Component, hint: Hint, when: When | None) -> Component:
    parts: list[Any] = [html.Span(label, className="field-label"), control, *_hints(hint)]
    parts.append(html.Span(className="field-error", **aria(live="polite")))
    return html.Label(parts, className="field", **({} if when is None else when.attributes()))


def _hints(hint: Hint) -> list[Component]:
    if isinstance(hint, str):
        return [html.Span(hint, className="note")] if hint else []
    return [html.Span(words, className="note", **when.attributes()) for when, words in hint]
