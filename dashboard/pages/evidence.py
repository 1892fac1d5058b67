"""The evidence of an alert, from the detectors' keys to a table that people read. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dash import html

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


def _sub(symbol: str, index: str, rest: str = "") -> list[Any]:
    return [symbol, html.Sub(index), rest]


_LABELS: dict[str, Any] = {
    "stability_ratio": _sub("λ", "max", " / limit"),
    "lambda_max": _sub("λ", "max"),
    "stability_limit": "limit 2/η",
    "lambda_max_growth_per_step": _sub("λ", "max", " grows"),
    "crossing_step": _sub("λ", "max", " crosses the limit"),
    "lambda_grad_ratio": _sub("λ", "grad", " / limit"),
    "decoupling": "Σg² / Σv̂",
    "decoupling_least": "Σg² / Σv̂, least",
    "decoupled_steps": "v decays on its own",
    "gradient_growth_per_step": "‖g‖ grows",
    "grad_norm_ratio": "‖g‖ against its usual size",
    "grad_norm_deviations": "‖g‖ above usual, deviations",
    "loss": "loss",
    "loss_baseline": "loss before",
    "loss_start": "loss at the start",
    "loss_peak": "loss at its peak",
    "loss_deviations": "loss above usual, deviations",
    "peak_step": "peak",
    "update_ratio": "update / weight",
    "learning_rate_before": "learning rate before",
    "learning_rate_after": "learning rate after",
    "lr_jump_step": "learning rate changed",
    "state_reset_step": "optimizer state was empty",
    "nonfinite_step": "not finite",
    "nonfinite_gradients": "gradients not finite",
    "nonfinite_loss": "loss not finite",
    "eps_fraction": "coordinates below ε",
    "predicted_at_step": "was predicted at",
    "warned_at_step": "first signs",
    "prediction_result": "prediction",
    "lead_steps": "lead",
    "false_alarms_before": "false alarms before it",
}
_GROWTH = frozenset({"lambda_max_growth_per_step", "gradient_growth_per_step"})
_STEPS = frozenset(
    {
        "crossing_step",
        "lr_jump_step",
        "nonfinite_step",
        "peak_step",
        "predicted_at_step",
        "state_reset_step",
        "warned_at_step",
    }
)
_RATIOS = frozenset(
    {"stability_ratio", "lambda_grad_ratio", "grad_norm_ratio", "loss_deviations", "grad_norm_deviations"}
)


def lines(alert: Alert) -> list[Line]:
    """What the detectors measured, in their order, and the layers that lead; what was not measured is left out."""
    shown = [
        Line(label=_LABELS.get(key, key.replace("_", " ")), value=_value(key, value))
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


def _value(key: str, value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    if key in _STEPS:
        return f"step {count(int(value))}"
    if key in ("decoupled_steps", "lead_steps"):
        return f"{count(int(value))} steps"
    if key in _GROWTH:
        return f"{100 * value:+.2g} % a step"
    if key == "eps_fraction":
        return f"{100 * value:.0f} %"
    if key == "nonfinite_loss":
        return "yes" if value else "no"
    if key in _RATIOS:
        return f"{ratio(value)}×" if key == "grad_norm_ratio" else ratio(value)
    return compact(value)
