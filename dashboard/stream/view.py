"""The view of a browser: its page and the choices of its controls, parsed from the store that view.js writes. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

NAME_CHARS = 256
QUERY_CHARS = 4_096
MORE_PANELS: Final = 3
"""Number of panels of one scalar beside the loss."""
LINE_PANELS: Final = ("loss", *(f"more-{slot}" for slot in range(MORE_PANELS)))
"""Panels whose axis and smoothing can be chosen."""
MAX_NAMES: Final = 64
MAX_SMOOTHING: Final = 200


@dataclass(frozen=True, kw_only=True)
class View:
    """Everything that decides what a page shows. Malformed values fall back to their defaults."""

    page: str
    """Name of the page."""
    subject: str | None = None
    """Id in the address of the page, such as that of a run; None on pages without one."""
    step_range: tuple[float, float] | None = None
    """First and last step of the zoomed range; None follows the newest steps."""
    follows: int = 0
    """Number of times that the browser returned to following; figures drop their zoom when it changes."""
    window: int | None = None
    """Number of newest steps to follow; None follows all steps."""
    attempt: int | None = None
    """Number of the attempt that all panels show; None shows the steps that no later attempt replaced."""
    metric: str = "loss"
    """Name of the scalar in the loss panel."""
    more: tuple[str | None, ...] = (None,) * MORE_PANELS
    """Names of the scalars in further panels; None leaves the choice to the page, and "-" hides the panel."""
    axes: Mapping[str, str] = field(default_factory=dict)
    """Axes that were chosen, "log" or "linear", keyed by panel."""
    smoothing: Mapping[str, int] = field(default_factory=dict)
    """Numbers of buckets that the line of a panel averages, keyed by panel."""
    stat: str | None = None
    """Name of the statistic in the heatmap; None chooses the first that the run has."""
    reduce: str = "max"
    """Reduction of several steps to one column of the heatmap: "max", "min" or "last"."""
    scale: str = "usual"
    """Colours of the heatmap: "usual" for each layer against its own recent level, or values by "log" or "linear"."""
    order: str = ""
    """Order of the rows of the heatmap: "" folds blocks where there are many layers, "model" or "risk"."""
    search: str = ""
    """Part of the names of the layers that are shown."""
    unfolded: tuple[str, ...] = ()
    """Blocks of layers that are unfolded."""
    theme: str = "dark"
    """Colour theme: "dark" or "light"."""
    narrow: bool = False
    """Whether the browser has the width of a phone."""
    cell: tuple[str, int] | None = None
    """Layer and step whose histograms are shown."""
    drawer: int = 0
    """Number of the opening of a drawer, which the page fills anew for each; 0 while none is open."""
    pinned: tuple[str, ...] = ()
    """Ids of the runs that this browser has pinned to the top of the list."""
    query: str = ""
    """Query of the address, in which some pages hold their choices; "" if it has none or is too long."""

    @property
    def address(self) -> tuple[str, str | None]:
        """Page and subject; while they stay the same, the components of the page are on screen."""
        return self.page, self.subject


def parse_view(data: Any) -> View | None:
    """Return the view that a browser sent, or None if the data is not a view. Accepts any data."""
    if not isinstance(data, Mapping) or not isinstance(data.get("page"), str):
        return None
    return View(
        page=data["page"],
        subject=_text(data.get("subject")),
        step_range=_range(data.get("range")),
        follows=_whole(data.get("follows")) or 0,
        window=_whole(data.get("window")),
        attempt=_attempt(data.get("attempt")),
        metric=_text(data.get("metric")) or "loss",
        more=tuple(_text(data.get(f"more-{slot}")) for slot in range(MORE_PANELS)),
        axes={panel: axis for panel in LINE_PANELS if (axis := data.get(f"axis-{panel}")) in ("log", "linear")},
        smoothing={
            panel: min(size, MAX_SMOOTHING)
            for panel in LINE_PANELS
            if (size := _whole(data.get(f"smooth-{panel}"))) is not None
        },
        stat=_text(data.get("stat")),
        reduce=data["reduce"] if data.get("reduce") in ("max", "min", "last") else "max",
        scale=data["scale"] if data.get("scale") in ("log", "linear") else "usual",
        order=data["order"] if data.get("order") in ("model", "risk") else "",
        search=_text(data.get("search")) or "",
        unfolded=_names(data.get("unfolded")),
        theme="light" if data.get("theme") == "light" else "dark",
        narrow=data.get("narrow") is True,
        cell=_cell(data.get("cell")),
        drawer=_whole(data.get("drawer")) or 0,
        pinned=_names(data.get("pinned")),
        query=_query(data.get("query")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= NAME_CHARS else None


def _query(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= QUERY_CHARS else ""


def _names(value: Any) -> tuple[str, ...]:
    return tuple(name for name in value[:MAX_NAMES] if _text(name)) if isinstance(value, list) else ()


def _whole(value: Any) -> int | None:
    number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 12 else value
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else None


def _attempt(value: Any) -> int | None:
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else None


def _range(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    if not all(isinstance(end, int | float) and math.isfinite(end) and abs(end) < 2**53 for end in value):
        return None
    low, high = sorted(float(end) for end in value)
    return (low, high) if high - low >= 1 else (low - 1, high + 1)


def _cell(value: Any) -> tuple[str, int] | None:
    if not isinstance(value, Mapping):
        return None
    layer, step = value.get("layer"), value.get("step")
    valid = isinstance(layer, str) and isinstance(step, int | float) and math.isfinite(step) and step >= 0
    return (str(layer), int(step)) if valid and step is not None else None
