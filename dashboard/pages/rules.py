"""The page of rules: the list, the form, and what a test found. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from dash import dcc, html
from dash.development.base_component import Component

from client_sdk.vocabulary import AlertLevel
from dashboard import ids
from dashboard.figures.rule_backtest import rule_backtest_figure
from dashboard.forms.fields import FieldError, Options, button, choice, form, number, optional, text, whole
from dashboard.models import Rule, RunSummary, Tried, TriedRun
from dashboard.numbers import count, exact, steps
from dashboard.pages.alert_cards import level_tone
from dashboard.pages.view import View

FORM: Final = "rule"
FIRINGS_SHOWN: Final = 8
RUNS_OFFERED: Final = 30
CONDITIONS: Final[Options] = (
    ("above", "is above"),
    ("below", "is below"),
    ("change", "changes"),
    ("z-score", "is unusual (z-score)"),
    ("no-data", "does not come (no data)"),
)
VALUE_HINTS: Final = {
    "on-level": "the threshold",
    "on-change": "the factor, or the amount",
    "on-z": "deviations; 6 is rare in healthy noise",
    "on-silence": "minutes",
}
LEVELS: Final[Options] = tuple((level.value, level.value) for level in AlertLevel)
REDUCED: Final = {"max": "greatest", "min": "least", "mean": "mean"}
SCALARS: Final = ("loss", "grad_norm", "lambda_max", "step_time")
STATISTICS: Final = ("grad_norm", "update_ratio", "rms_ratio", "eps_fraction")


def layout(*, may_change: bool = True) -> Component:
    """The page before its first data. ``may_change``: whether the viewer may write rules."""
    new = html.Div(button("New rule", "new-rule", of="new"), className="form-buttons") if may_change else None
    bones = [html.Div(html.Span(className="bone"), className="item") for _ in range(3)]
    return html.Div(
        [
            html.H1("Rules"),
            html.P(
                "Alerts of your own, without code. Spikes, predictions, NaN and learning-rate jumps need no rule.",
                className="muted lead",
            ),
            html.Div(
                [
                    html.Section(
                        [
                            html.Div(bones, id=ids.RULE_LIST, className="card items"),
                            new,
                        ]
                    ),
                    html.Section(
                        [
                            html.Div(welcome(may_change=may_change), id=ids.RULE_EDITOR),
                            dcc.Store(id=ids.RULE_TRIED),
                            html.Div(id=ids.RULE_RESULT),
                        ]
                    ),
                ],
                className="halves",
            ),
        ],
        className="page",
    )


def welcome(*, may_change: bool = True) -> Component:
    """What stands where the form will be."""
    words = "Choose a rule to change it, or make a new one. Test it on what a run has logged before you save it."
    if not may_change:
        words = "These rules watch the runs that you see. Administrators of all projects change them."
    return html.Div(html.P(words, className="muted"), className="card calm-form")


def items(rules: Sequence[Rule], *, may_change: bool = True) -> list[Component]:
    """The list."""
    if not rules:
        return [html.P("No rule. The detectors look on all the same.", className="muted none")]
    return [_item(rule, may_change=may_change) for rule in rules]


def _item(rule: Rule, *, may_change: bool) -> Component:
    return html.Div(
        [
            html.Div(
                [
                    html.Div(
                        [
                            html.Span(
                                rule.level, className=f"pill {level_tone(rule.level)}" if rule.enabled else "pill"
                            ),
                            html.B(rule.name),
                            None if rule.enabled else html.Span("off", className="pill"),
                        ],
                        className="item-name",
                    ),
                    html.P(sentence(rule), className="muted"),
                ],
                className="item-words",
            ),
            html.Div(
                [
                    button("Edit", "edit-rule", of=rule.id),
                    button("Switch off" if rule.enabled else "Switch on", "switch-rule", of=rule.id),
                    button("Delete", "delete-rule", of=rule.id, sure="Really delete?"),
                ],
                className="item-buttons",
            )
            if may_change
            else None,
        ],
        className="item" if rule.enabled else "item off",
    )


def sentence(rule: Rule) -> str:
    """What a rule says, as people say it."""
    what = rule.scalar or "any record"
    if rule.statistic is not None:
        what = f"{REDUCED.get(rule.reduce, rule.reduce)} {rule.statistic} of "
        what += "all layers" if rule.layers == "*" else rule.layers
    way = {"up": "rises", "down": "falls"}.get(rule.direction, "changes")
    by = f"{exact(rule.value)}×" if rule.change_by == "factor" else exact(rule.value)
    side = {"up": "above", "down": "below"}.get(rule.direction, "off")
    said = {
        "above": f"{what} above {exact(rule.value)}",
        "below": f"{what} below {exact(rule.value)}",
        "change": f"{what} {way} by {by} over {steps(rule.window)}",
        "z-score": f"{what} {exact(rule.value)} deviations {side} its last {count(rule.window)} values",
        "no-data": f"{what} missing for {exact(rule.value)} min",
    }.get(rule.condition, rule.condition)
    if rule.for_steps > 1 and rule.condition != "no-data":
        said += f", {count(rule.for_steps)} values in a row"
    runs = [
        *([f"project {rule.project}"] if rule.project else []),
        *([f"tag {rule.tag}"] if rule.tag else []),
        *([rule.run_name] if rule.run_name else []),
    ]
    return f"{said} · {', '.join(runs) if runs else 'all runs'}"


def editor(rule: Rule | None, runs: Sequence[RunSummary]) -> Component:
    """The form of one rule, or of a new one. ``runs``: those on which it may be tried."""
    known = rule if rule is not None else Rule(id="", name="", condition="above", value=0.0, scalar="loss")
    watches = "layers" if known.statistic is not None else "scalar" if known.scalar is not None else "anything"
    value = "" if rule is None else f"{known.value:g}"
    fields = [
        text("name", "Name", known.name, hint="the headline of its alerts"),
        choice("level", "Level", LEVELS, known.level),
        choice("watches", "Watches", (("scalar", "a scalar"), ("layers", "layers"), ("anything", "any data")), watches),
        text("scalar", "Scalar", known.scalar or "", only="of-scalar", placeholder="loss",
             hint="such as " + ", ".join(SCALARS)),
        text("statistic", "Statistic", known.statistic or "", only="of-layers", placeholder="grad_norm",
             hint="such as " + ", ".join(STATISTICS)),
        text("layers", "Layers", known.layers, only="of-layers", hint="name pattern: * is all, blocks.*.weight"),
        choice("reduce", "Of them", (("max", "the greatest"), ("min", "the least"), ("mean", "the mean")),
               known.reduce, only="of-layers"),
        choice("condition", "Condition", CONDITIONS, known.condition),
        choice("direction", "Direction", (("up", "up"), ("down", "down"), ("either", "either way")),
               known.direction, only="for-change for-z"),
        choice("change_by", "By", (("factor", "a factor"), ("amount", "an amount")), known.change_by,
               only="for-change"),
        text("value", "Value", value, hint=VALUE_HINTS),
        text("window", "Window", str(known.window), mode="numeric", only="for-change for-z",
             hint={"on-change": "steps back", "on-z": "values that are usual, 20 to 500"}),
        text("for_steps", "Values in a row", str(known.for_steps), mode="numeric", only="not-silence",
             hint="that it must hold"),
        text("cooldown_minutes", "Cooldown, minutes", f"{known.cooldown_minutes:g}",
             hint="from one alert to the next in a run"),
        text("project", "Project", known.project or "", placeholder="all"),
        text("tag", "Tag", known.tag or "", placeholder="any"),
        text("run_name", "Run name", known.run_name or "", placeholder="all", hint="pattern: gpt-*"),
        choice("try_on", "Test on", _places(runs, known), ""),
    ]  # fmt: skip
    return html.Div(
        [
            html.H2("New rule" if rule is None else f"Rule: {known.name}"),
            form(
                FORM,
                fields,
                [button("Save", "save-rule", strong=True), button("Test on history", "try-rule")],
                of=known.id,
                choices={"watches": watches, "condition": known.condition},
            ),
        ],
        className="card editor",
    )


def _places(runs: Sequence[RunSummary], rule: Rule) -> Options:
    """Runs and projects to try a rule on; those of its project first."""
    mine = sorted(runs, key=lambda run: rule.project is not None and run.project != rule.project)
    projects = dict.fromkeys(run.project for run in mine)
    named = [(f"run:{run.id}", f"{run.title} ({run.project}, {steps(run.last_step)})") for run in mine[:RUNS_OFFERED]]
    found = [*named, *((f"project:{name}", f"the newest runs of {name}") for name in list(projects)[:RUNS_OFFERED])]
    return found or [("", "no run yet")]


def body(fields: Mapping[str, str], known: Rule | None, taken: Sequence[str]) -> dict[str, Any]:
    """The rule that was filled in, as the API takes it. Raises `FieldError`.

    ``known``: the rule that is changed. ``taken``: ids that a new one cannot have.
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
    """An id for a new rule, made of its name."""
    letters = "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in name.lower())
    base = "-".join(letters.split())[:50].strip("-") or "rule"
    found, number_ = base, 2
    while found in taken:
        found, number_ = f"{base}-{number_}", number_ + 1
    return found


def result(tried: Tried, rule: Mapping[str, Any], view: View) -> list[Component]:
    """What a test found, run by run."""
    if not tried.runs:
        return [html.Div(html.P("No run that the rule is for.", className="muted"), className="card editor")]
    return [_run_result(run, rule, view) for run in tried.runs]


def _run_result(run: TriedRun, rule: Mapping[str, Any], view: View) -> Component:
    times = "not have fired" if run.fired == 0 else f"have fired {'once' if run.fired == 1 else f'{run.fired} times'}"
    notes = []
    if not run.chosen:
        notes.append("As it stands, the rule is not for this run: its project, tag or name do not match.")
    if not run.values and rule.get("condition") != "no-data":
        notes.append("The run never logged what the rule watches.")
    if not run.complete:
        notes.append(f"The time was up at step {count(run.last_step)}; what came after was not read.")
    firings = [
        html.Li(
            [
                html.B(f"step {count(firing.step)}"),
                html.Span(_span(firing.until_step), className="muted"),
                html.Span(firing.message),
            ]
        )
        for firing in run.firings[:FIRINGS_SHOWN]
    ]
    more = run.fired - len(firings)
    return html.Section(
        [
            html.H2(f"It would {times}", className="fired"),
            html.P([f"on {run.name}, {count(run.values)} values up to step {count(run.last_step)}"], className="note"),
            *[html.P(note, className="warn") for note in notes],
            dcc.Graph(
                figure=rule_backtest_figure(run, rule, view.theme, narrow=view.narrow),
                config={"displayModeBar": False, "responsive": True},
                className="graph rehearsal",
            )
            if run.series.step
            else None,
            html.Ol(firings, className="firings") if firings else None,
            html.P(f"and {count(more)} more", className="note") if more > 0 else None,
        ],
        className="card editor",
    )


def _span(until: int | None) -> str:
    return " still open at the end" if until is None else f" closed at {count(until)}"
