"""The result of a backtest: when an alert rule would have fired in the history of runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dash import dcc, html
from dash.development.base_component import Component

from client_sdk.answers import Backtest, RunBacktest
from dashboard.figures.rule_backtest import rule_backtest_figure
from dashboard.numbers import count
from dashboard.stream.view import View

FIRINGS_SHOWN: Final = 8


def backtest_sections(backtest: Backtest, rule: Mapping[str, Any], view: View) -> list[Component]:
    """Return one section per run, with the steps at which the rule would have fired."""
    if not backtest.runs:
        return [html.Div(html.P("The rule applies to no run.", className="muted"), className="card editor")]
    return [_run_result(run, rule, view) for run in backtest.runs]


def _run_result(run: RunBacktest, rule: Mapping[str, Any], view: View) -> Component:
    times = "not have fired" if run.fired == 0 else f"have fired {'once' if run.fired == 1 else f'{run.fired} times'}"
    notes = []
    if not run.chosen:
        notes.append("The rule does not apply to this run: its project, tag or run name does not match.")
    if not run.values and rule.get("condition") != "no-data":
        notes.append("The run never logged the values that the rule watches.")
    if len(run.firings) < run.fired:
        notes.append(f"The plot shows the first {count(len(run.firings))}.")
    if not run.complete:
        notes.append(f"The time limit was reached at step {count(run.last_step)}; later steps were not read.")
    firings = [
        html.Li(
            [
                html.B(f"step {count(firing.step)}"),
                html.Span(_end_words(firing.until_step), className="muted"),
                html.Span(firing.message),
            ]
        )
        for firing in run.firings[:FIRINGS_SHOWN]
    ]
    more = run.fired - len(firings)
    return html.Section(
        [
            html.H2(f"It would {times}", className="fired"),
            _swallowed(run, rule),
            html.P([f"on {run.name}, {count(run.values)} values up to step {count(run.last_step)}"], className="note"),
            *[html.P(note, className="warn") for note in notes],
            dcc.Graph(
                figure=rule_backtest_figure(run, rule, view.theme, narrow=view.narrow),
                config={"displayModeBar": False, "responsive": True},
                className="graph backtest",
            )
            if run.series.step
            else None,
            html.Ol(firings, className="firings") if firings else None,
            html.P(f"and {count(more)} more", className="note") if more > 0 else None,
        ],
        className="card editor",
    )


def _swallowed(run: RunBacktest, rule: Mapping[str, Any]) -> Component | None:
    """Return what the cooldown has swallowed, as the plot shows it, or None if nothing."""
    if not run.swallowed:
        return None
    minutes = rule.get("cooldown_minutes")
    cooldown = f"The cooldown of {minutes:g} minutes" if isinstance(minutes, int | float) else "The cooldown"
    times = "once" if len(run.swallowed) == 1 else f"{count(len(run.swallowed))} times"
    steps = ", ".join(count(firing.step) for firing in run.swallowed[:FIRINGS_SHOWN])
    more = ", …" if len(run.swallowed) > FIRINGS_SHOWN else ""
    return html.P(f"{cooldown} swallowed it {times}, at step {steps}{more} (hollow marks).", className="note")


def _end_words(until: int | None) -> str:
    return " still open at the end" if until is None else f" closed at {count(until)}"
