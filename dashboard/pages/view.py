"""What one browser looks at: parsed from the store that view.js writes. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAME_CHARS = 256


@dataclass(frozen=True, kw_only=True)
class View:
    """The page, the steps, and the choices of its pickers. Anything malformed falls back to the default."""

    page: str
    run_id: str | None = None
    alert_id: str | None = None
    step_range: tuple[float, float] | None = None
    """None follows the newest steps."""
    follows: int = 0
    """Counts the returns to following, so that an old zoom is forgotten by the figures too."""
    window: int | None = None
    """How many of the newest steps to follow; None is all of them."""
    metric: str = "loss"
    stat: str | None = None
    reduce: str = "max"
    logarithmic: bool = True
    theme: str = "dark"
    narrow: bool = False
    cell: tuple[str, int] | None = None
    """Layer and step whose histograms are shown."""

    @property
    def place(self) -> tuple[str, str | None, str | None]:
        """The page and what it is about: what must stay the same for a page's parts to be on screen."""
        return self.page, self.run_id, self.alert_id


def parse_view(data: Any) -> View | None:
    """The view of a browser, which may send anything; None before it has sent one."""
    if not isinstance(data, Mapping) or not isinstance(data.get("page"), str):
        return None
    return View(
        page=data["page"],
        run_id=_text(data.get("run")),
        alert_id=_text(data.get("alert")),
        step_range=_range(data.get("range")),
        follows=_whole(data.get("follows")) or 0,
        window=_whole(data.get("window")),
        metric=_text(data.get("metric")) or "loss",
        stat=_text(data.get("stat")),
        reduce=data["reduce"] if data.get("reduce") in ("max", "min", "last") else "max",
        logarithmic=data.get("scale") != "linear",
        theme="light" if data.get("theme") == "light" else "dark",
        narrow=data.get("narrow") is True,
        cell=_cell(data.get("cell")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= NAME_CHARS else None


def _whole(value: Any) -> int | None:
    number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 12 else value
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else None


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
