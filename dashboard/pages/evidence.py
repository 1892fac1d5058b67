"""The evidence of an alert, from the detectors' keys to a table that people read. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dash import html

from client_sdk.vocabulary import EVIDENCE
from dashboard.models import Alert
from dashboard.numbers import compact, count, ratio

LAYERS_NAMED = 3
_HIDDEN = frozenset({"sign", "prediction_id"})
"""Keys that the headline already says, or that only programs read."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table."""

    label: Any
    """Text, or text with subscripts as components."""
    value: str
    title: str = ""


def lines(alert: Alert) -> list[Line]:
    """What the detectors measured, in their order, and the layers that lead; what was not measured is left out."""
    shown = [
        Line(label=_label(key), value=_value(key, value))
        for key, value in alert.evidence.items()
        if value is not None and key not in _HIDDEN
    ]
    if alert.layers:
        named = ", ".join(alert.layers[:LAYERS_NAMED])
        shown.append(Line(label="leading layers", value=named, title="\n".join(alert.layers)))
    return shown


def growth_per_step(evidence: Mapping[str, float | int | str | None]) -> float | None:
    """The forecast's slope of log λ_max, where it has one."""
    value = evidence.get("lambda_max_growth_per_step")
    return float(value) if isinstance(value, int | float) else None


def _label(key: str) -> Any:
    """Return the label of an evidence key, with the index of λ_max and λ_grad as a subscript."""
    known = EVIDENCE.get(key)
    if known is None:
        return key.replace("_", " ")
    parts = re.split(r"(?<=λ)_(max|grad)", known.label)
    if len(parts) == 1:
        return known.label
    return [html.Sub(part) if index % 2 else part for index, part in enumerate(parts) if part]


def _value(key: str, value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    known = EVIDENCE.get(key)
    match "number" if known is None else known.form:
        case "step":
            return f"step {count(int(value))}"
        case "steps":
            return f"{count(int(value))} steps"
        case "growth":
            return f"{100 * value:+.2g} % a step"
        case "share":
            return f"{100 * value:.0f} %"
        case "flag":
            return "yes" if value else "no"
        case "times":
            return f"{ratio(value)}×"
        case "ratio":
            return ratio(value)
        case _:
            return compact(value)
