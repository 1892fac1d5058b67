"""Controls whose values the query of the address holds; query.js keeps both equal. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dash import html
from dash.development.base_component import Component

from dashboard.forms.attributes import data

OPTION_CHARS: Final = 40


def queried_select(name: str, options: Mapping[str, str], query: str, *, control_id: str = "") -> Component:
    """Return a native select with its name beside it.

    ``query``: name of its value in the address, which lacks it for the first option.
    """
    named: dict[str, Any] = {"id": control_id} if control_id else {}
    control = html.Select(select_options(options), **named, **data(query=query))
    return html.Label([html.Span(f"{name}:"), control], className="control select")


def select_options(words: Mapping[str, str]) -> list[Component]:
    """Return the options of a select from words keyed by value."""
    return [html.Option(_cut(word), value=value) for value, word in words.items()]


def _cut(word: str) -> str:
    return word if len(word) <= OPTION_CHARS else word[: OPTION_CHARS - 1] + "…"
