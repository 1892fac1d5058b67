"""The evidence of an alert as a table for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from client_sdk.answers import Alert
from client_sdk.vocabulary import EVIDENCE
from dashboard.numbers import compact, count, ratio
from dashboard.pages.symbols import symbols

LAYERS_NAMED = 3
_HIDDEN = frozenset({"sign", "prediction_id", "incident_id"})
"""Keys that the headline repeats or that only programs read."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table of evidence."""

    label: Any
    """Label as text, or as a list of text and subscripts."""
    value: str
    """Value as formatted text."""
    title: str = ""
    """Text of the tooltip; empty for none."""


def lines(alert: Alert) -> list[Line]:
    """Return the measured evidence in the order of the detectors, and the leading layers."""
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
    """Return the slope of log λ_max per step in the forecast, or None if the evidence has none."""
    return _number(evidence, "lambda_max_growth_per_step")


def mode_growth_per_step(evidence: Mapping[str, float | int | str | None]) -> float | None:
    """Return the slope of the logarithm of the unstable direction's amplitude per step, or None without one."""
    return _number(evidence, "mode_growth_per_step")


def _number(evidence: Mapping[str, float | int | str | None], key: str) -> float | None:
    value = evidence.get(key)
    return float(value) if isinstance(value, int | float) else None


def _label(key: str) -> Any:
    known = EVIDENCE.get(key)
    return symbols(known.label) if known is not None else key.replace("_", " ")


def _value(key: str, value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    known = EVIDENCE.get(key)
    match "number" if known is None else known.form:
        case "count":
            return count(int(value))
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
