"""The live state in the header. Pure."""

from __future__ import annotations

from dash import html
from dash.development.base_component import Component


def status(tone: str, word: str, detail: str = "") -> list[Component]:
    """Return the live state: a dot, a word and a few numbers. ``tone``: class of the stylesheet."""
    return [
        html.Span([html.I(className="dot"), word], className=f"state {tone}"),
        html.Span(detail, className="detail"),
    ]
