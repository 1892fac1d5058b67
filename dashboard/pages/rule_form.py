"""The form of an alert rule: from a rule to fields, and from fields to a rule. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from dash import html
from dash.development.base_component import Component

from client_sdk.answers import Rule, RunSummary
from client_sdk.vocabulary import AlertLevel
from dashboard.forms.fields import FieldError, Options, When, button, choice, form, number, optional, text, whole
from dashboard.numbers import steps

FORM: Final = "rule"
RUNS_OFFERED: Final = 30
CONDITIONS: Final[Options] = (
    ("above", "is above"),
    ("below", "is below"),
    ("change", "changes"),
    ("z-score", "is unusual (z-score)"),
    ("no-data", "does not come (no data)"),
)
VALUE_HINTS: Final = (
    (("above", "below"), "the threshold"),
    (("change",), "the factor, or the amount"),
    (("z-score",), "deviations; 6 is rare in healthy noise"),
    (("no-data",), "minutes"),
)
"""Conditions of rules and the note under the value for them."""
LEVELS: Final[Options] = tuple((level.value, level.value) for level in AlertLevel)
SCALARS: Final = ("loss", "grad_norm", "lambda_max", "step_time")
STATISTICS: Final = ("grad_norm", "update_ratio", "rms_ratio", "eps_fraction")


def editor(rule: Rule | None, runs: Sequence[RunSummary]) -> Component:
    """Return the form of a rule, or of a new one. ``runs``: runs on whose history the rule can be tested."""
    known = rule if rule is not None else Rule(id="", name="", condition="above", value=0.0, scalar="loss")
    watches = "layers" if known.statistic is not None else "scalar" if known.scalar is not None else "anything"
    value = "" if rule is None else f"{known.value:g}"

    def watching(*subjects: str) -> When:
        return When(field="watches", values=subjects, current=watches)

    def under(*conditions: str) -> When:
        return When(field="condition", values=conditions, current=known.condition)

    fields = [
        text("name", "Name", known.name, hint="the headline of its alerts"),
        choice("level", "Level", LEVELS, known.level),
        choice("watches", "Watches", (("scalar", "a scalar"), ("layers", "layers"), ("anything", "any data")), watches),
        text("scalar", "Scalar", known.scalar or "", when=watching("scalar"), placeholder="loss",
             hint="such as " + ", ".join(SCALARS)),
        text("statistic", "Statistic", known.statistic or "", when=watching("layers"), placeholder="grad_norm",
             hint="such as " + ", ".join(STATISTICS)),
        text("layers", "Layers", known.layers, when=watching("layers"), hint="name pattern: * is all, blocks.*.weight"),
        choice("reduce", "Of them", (("max", "the greatest"), ("min", "the least"), ("mean", "the mean")),
               known.reduce, when=watching("layers")),
        choice("condition", "Condition", CONDITIONS, known.condition),
        choice("direction", "Direction", (("up", "up"), ("down", "down"), ("either", "either way")),
               known.direction, when=under("change", "z-score")),
        choice("change_by", "By", (("factor", "a factor"), ("amount", "an amount")), known.change_by,
               when=under("change")),
        text("value", "Value", value, hint=[(under(*conditions), words) for conditions, words in VALUE_HINTS]),
        text("window", "Window", str(known.window), mode="numeric", when=under("change", "z-score"),
             hint=[(under("change"), "steps back"), (under("z-score"), "previous values to compare with, 20 to 500")]),
        text("for_steps", "Values in a row", str(known.for_steps), mode="numeric",
             when=under("above", "below", "change", "z-score"), hint="that it must hold"),
        text("cooldown_minutes", "Cooldown, minutes", f"{known.cooldown_minutes:g}",
             hint="from one alert to the next in a run"),
        text("project", "Project", known.project or "", placeholder="all"),
        text("tag", "Tag", known.tag or "", placeholder="any"),
        text("run_name", "Run name", known.run_name or "", placeholder="all", hint="pattern: gpt-*"),
        choice("backtest_on", "Test on", _backtest_options(runs, known), ""),
    ]  # fmt: skip
    return html.Div(
        [
            html.H2("New rule" if rule is None else f"Rule: {known.name}"),
            form(
                FORM,
                fields,
                [button("Save", "save-rule", strong=True), button("Test on history", "backtest-rule")],
                subject=known.id,
            ),
        ],
        className="card editor",
    )


def _backtest_options(runs: Sequence[RunSummary], rule: Rule) -> Options:
    """Return the runs and projects on which a rule can be tested, those of its own project first."""
    mine = sorted(runs, key=lambda run: rule.project is not None and run.project != rule.project)
    projects = dict.fromkeys(run.project for run in mine)
    named = [(f"run:{run.id}", f"{run.title} ({run.project}, {steps(run.last_step)})") for run in mine[:RUNS_OFFERED]]
    found = [*named, *((f"project:{name}", f"the newest runs of {name}") for name in list(projects)[:RUNS_OFFERED])]
    return found or [("", "no runs yet")]


def body(fields: Mapping[str, str], known: Rule | None, taken: Sequence[str]) -> dict[str, Any]:
    """Return the rule in a filled form, as the API accepts it. Raises `FieldError` if a field is invalid.

    ``known``: the rule before the change, or None for a new one. ``taken``: ids that a new rule cannot have.
    """
    name = fields.get("name", "").strip()
    if not name:
        raise FieldError("name", "a name is needed: it is the headline of its alerts")
    watches, condition = fields.get("watches"), fields.get("condition", "")
    if watches == "anything" and condition != "no-data":
        raise FieldError("watches", "only the condition “no data” can watch any data")
    found: dict[str, Any] = {
        "id": known.id if known is not None else slug(name, taken),
        "name": name,
        "enabled": True if known is None else known.enabled,
        "condition": condition,
        "value": number(fields, "value"),
        "level": fields.get("level", ""),
        "project": optional(fields, "project"),
        "tag": optional(fields, "tag"),
        "run_name": optional(fields, "run_name"),
        "cooldown_minutes": number(fields, "cooldown_minutes"),
    }
    if watches == "scalar":
        found["scalar"] = optional(fields, "scalar")
        if found["scalar"] is None:
            raise FieldError("scalar", "which one? For example loss")
    if watches == "layers":
        found |= {"statistic": optional(fields, "statistic"), "layers": optional(fields, "layers") or "*"}
        found["reduce"] = fields.get("reduce", "")
        if found["statistic"] is None:
            raise FieldError("statistic", "which one? For example grad_norm")
    if condition != "no-data":
        found["for_steps"] = whole(fields, "for_steps")
    if condition in ("change", "z-score"):
        found |= {"window": whole(fields, "window"), "direction": fields.get("direction", "")}
    if condition == "change":
        found["change_by"] = fields.get("change_by", "")
    return found


def slug(name: str, taken: Sequence[str]) -> str:
    """Return an id for a new rule, derived from its name."""
    letters = "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in name.lower())
    base = "-".join(letters.split())[:50].strip("-") or "rule"
    found, number_ = base, 2
    while found in taken:
        found, number_ = f"{base}-{number_}", number_ + 1
    return found
