"""Colours, margins, fonts and axes that all panels of a run share. Pure."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import plotly.graph_objects as go

from client_sdk.vocabulary import Stage

STAGE_COLOURS: Final[Mapping[str, str]] = {
    Stage.STABLE: "#009E73",
    Stage.DECOUPLED: "#56B4E9",
    Stage.UNSTABLE: "#E69F00",
    Stage.SPIKING: "#D55E00",
    Stage.RECOVERING: "#CC79A7",
    Stage.NONFINITE: "#7A0019",
    Stage.NOT_JUDGED: "#8d949e",
}
TRACE_TYPES: Final = frozenset({"scatter", "bar", "heatmap"})
"""Kinds of traces in the bundle of Plotly that the dashboard serves, as in deploy/plotly/bundle.cjs."""
FONT: Final = "Inter, system-ui, sans-serif"
MARGIN_LEFT: Final = 148  # pixels; equal in all panels, so that their steps line up
MARGIN_RIGHT: Final = 66
NARROW_MARGIN_LEFT: Final = 58
NARROW_MARGIN_RIGHT: Final = 38


@dataclass(frozen=True, kw_only=True)
class Palette:
    """Colours of one theme."""

    name: str
    surface: str
    line: str
    ink: str
    muted: str
    accent: str
    danger: str
    lambda_max: str
    lambda_grad: str
    accent_band: str
    danger_band: str
    warn: str
    """Colour of forecasts at level watch."""
    label_ground: str
    """Ground of a label that may lie on a line."""


DARK: Final = Palette(
    name="dark",
    surface="#15181e",
    line="#252a32",
    ink="#e9ebee",
    muted="#8d949e",
    accent="#6ea2ff",
    danger="#ff7a5c",
    lambda_max="#f0b04a",
    lambda_grad="#c58bf0",
    accent_band="rgba(110,162,255,0.22)",
    danger_band="rgba(255,122,92,0.14)",
    warn="#f0b04a",
    label_ground="rgba(21,24,30,0.72)",
)
LIGHT: Final = Palette(
    name="light",
    surface="#ffffff",
    line="#e4e4e0",
    ink="#1b1d21",
    muted="#6d7178",
    accent="#2f6fde",
    danger="#c8371b",
    lambda_max="#c77700",
    lambda_grad="#8a4bbd",
    accent_band="rgba(47,111,222,0.18)",
    danger_band="rgba(200,55,27,0.11)",
    warn="#b86e00",
    label_ground="rgba(255,255,255,0.78)",
)


def palette(theme: str) -> Palette:
    """Return the palette of a theme; dark for any name but "light"."""
    return LIGHT if theme == "light" else DARK


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Settings that all panels of a page share in one refresh."""

    palette: Palette
    step_from: float
    step_to: float
    narrow: bool = False
    """Whether the page is as narrow as on a phone, with smaller margins and fewer labels."""
    revision: str = "live"
    """Plotly's `uirevision`; while it stays the same, zoom and other interactions are kept."""

    @property
    def left(self) -> int:
        """Left margin in pixels."""
        return NARROW_MARGIN_LEFT if self.narrow else MARGIN_LEFT

    @property
    def right(self) -> int:
        """Right margin in pixels."""
        return NARROW_MARGIN_RIGHT if self.narrow else MARGIN_RIGHT


def safe(text: str) -> str:
    """Return escaped text for a label or hover, because Plotly interprets both as HTML."""
    return html.escape(text, quote=False)


def step_axis(frame: Frame, **more: Any) -> dict[str, Any]:
    """Return the horizontal axis that all panels share."""
    return {
        "range": [frame.step_from, frame.step_to],
        "autorange": False,
        "showgrid": True,
        "gridcolor": frame.palette.line,
        "gridwidth": 1,
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "tickformat": ",d",
        "nticks": 5 if frame.narrow else 9,
        "tickfont": {"size": 11, "color": frame.palette.muted},
        "hoverformat": ",d",
        **more,
    }


def value_axis(frame: Frame, **more: Any) -> dict[str, Any]:
    """Return a vertical axis with a fixed range, so that dragging always selects steps."""
    return {
        "fixedrange": True,
        "showgrid": True,
        "gridcolor": frame.palette.line,
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "ticklabelstandoff": 5,
        "exponentformat": "e",
        "nticks": 5,
        "tickfont": {"size": 11, "color": frame.palette.muted},
        **more,
    }


def layout(frame: Frame, *, top: int = 6, bottom: int = 24, **more: Any) -> dict[str, Any]:
    """Return the layout on which every panel is based. ``top`` and ``bottom``: margins in pixels."""
    return {
        "margin": {"l": frame.left, "r": frame.right, "t": top, "b": bottom, "pad": 0, "autoexpand": False},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 11, "color": frame.palette.ink},
        "showlegend": False,
        "hovermode": "x",
        "dragmode": "zoom",
        "uirevision": frame.revision,
        "hoverlabel": {
            "bgcolor": frame.palette.surface,
            "bordercolor": frame.palette.line,
            "font": {"family": FONT, "size": 12, "color": frame.palette.ink},
            "align": "left",
            "namelength": -1,
        },
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)",
            "color": frame.palette.muted,
            "activecolor": frame.palette.ink,
            "orientation": "h",
        },
        **more,
    }


def figure(data: list[Any], layout: dict[str, Any]) -> go.Figure:
    """Return a figure without Plotly's default template. Raises `ValueError` for a trace that browsers cannot draw."""
    for trace in data:
        if trace["type"] not in TRACE_TYPES:
            raise ValueError(
                f"the partial bundle of Plotly has no {trace['type']!r}: add it as deploy/plotly/README.md says"
            )
    result = go.Figure(data=data, layout=layout)
    result.layout.template = None
    return result
