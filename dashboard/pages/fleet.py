"""The fleet page: its frame, and what each row says of its run. Pure; fleet.js sorts, filters and draws the rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote

from dash import dcc, html
from dash.development.base_component import Component

from client_sdk.vocabulary import AlertKind, AlertLevel, AlertState, RunState, Stage
from dashboard import ids
from dashboard.figures.sparkline import sparkline
from dashboard.forms.attributes import aria, data
from dashboard.models import Alert, LastAlert, Outcome, RunSummary
from dashboard.numbers import compact, duration, rate, ratio, steps, unix_time

SNIPPET: Final = """import client_sdk

client_sdk.init(project="my-project")
client_sdk.watch(model, optimizer)
for step, batch in enumerate(loader):
    loss = loss_fn(model, batch)
    loss.backward(); optimizer.step(); optimizer.zero_grad()
    client_sdk.log({"loss": loss}, step=step, closure=lambda: loss_fn(model, batch))
"""
COLUMNS: Final = ("Run", "Stage", "λ max / limit", "Spike in", "Loss", "Last alert", "State")


def layout() -> Component:
    """The page before its first data."""
    heads = [html.Span(_curvature_head() if name.startswith("λ") else name, role="columnheader") for name in COLUMNS]
    heads.insert(5, html.Span("", role="columnheader", **aria(hidden="true")))
    return html.Div(
        [
            html.H1("Runs", className="unseen"),
            html.Div(
                [
                    dcc.Input(
                        id="fleet-search", type="search", placeholder="Search runs   /", className="control search",
                        autoComplete="off",
                    ),
                    _select("fleet-project", "Project", [("", "all")]),
                    _select(
                        "fleet-state", "State",
                        [("", "all"), *((word, word) for word in ("live", "stale", "finished", "crashed"))],
                    ),
                    _select("fleet-sort", "Sort", [("risk", "risk"), ("newest", "newest"), ("name", "name")]),
                    html.Div(id=ids.FLEET_COUNTS, className="counts"),
                ],
                className="toolbar",
            ),
            html.Div(
                [
                    html.Div(heads, className="fleet-head", role="row"),
                    html.Div(id=ids.FLEET_TABLE, role="rowgroup"),
                    html.Div(_skeleton(), className="fleet-bones", **aria(hidden="true")),
                ],
                className="card fleet",
                role="table",
                **aria(label="Runs"),
            ),
            html.Div(no_data(), id="fleet-empty", className="hidden"),
            html.Div(id="fleet-none", className="lonely muted hidden", children="No run matches."),
            dcc.Store(id=ids.FLEET),
        ],
        className="page",
    )  # fmt: skip


def no_data(*, connected: bool = False) -> list[Component]:
    """What to do when nothing was logged yet, with the lines to copy; `connected` when the run itself is known."""
    words = (
        "The run is connected; its curves appear with its first "
        if connected
        else ("Add these lines to a training loop; its run appears here with its first ")
    )
    return [
        html.Div(
            [
                html.H2("No data yet"),
                html.P([words, html.Code("client_sdk.log(...)"), "."]),
                html.Div(
                    [
                        html.Pre(html.Code(SNIPPET), id="snippet"),
                        html.Button("Copy", className="button copy", type="button", **data(copy="snippet")),
                    ],
                    className="snippet",
                ),
                html.P(["No training at hand? ", html.Code("spikewatch demo"), " runs three."], className="muted"),
            ],
            className="card lonely",
        )
    ]


def counts(runs: Iterable[RunSummary], alerts: Iterable[Alert]) -> list[Component]:
    """How many are about to spike, how many live, and how often predictions came true."""
    known = list(runs)
    live = [run for run in known if run.state == RunState.RUNNING]
    risky = [run for run in live if run.predicted_step is not None or run.stage == Stage.SPIKING]
    settled = [a.outcome.result for a in alerts if a.kind == AlertKind.SPIKE_PREDICTED and a.outcome is not None]
    shown = [
        _count(str(len(risky)), "about to spike", "danger" if risky else ""),
        _count(str(len(live)), "live"),
    ]
    if settled:
        came = sum(result != "false" for result in settled)
        shown.append(_count(f"{came} of {len(settled)}", "predictions came true"))
    return shown


def row(run: RunSummary, now: float, alerts: Mapping[str, Alert] = MappingProxyType({})) -> dict[str, Any]:
    """One run as fleet.js draws it: every word is already written, every tone is a class of the stylesheet.

    `alerts` by id tell how the last one ended.
    """
    word, tone = state_words(run, now)
    spike, spike_tone = spike_in(run)
    pace = rate(run.step_rate) if run.state == RunState.RUNNING else ""
    last = alerts.get(run.last_alert.id) if run.last_alert is not None else None
    told, alert_tone = alert_words(run.last_alert, is_over=run.state in (RunState.FINISHED, RunState.CRASHED))
    if last is not None and last.outcome is not None:
        told = outcome_words(last, last.outcome)
    measured = run.stability_ratio if run.stability_ratio is not None and math.isfinite(run.stability_ratio) else None
    return {
        "id": run.id,
        "href": f"/runs/{quote(run.id, safe='')}",
        "name": run.title,
        "project": run.project,
        "sub": " · ".join(part for part in (run.project, steps(run.last_step), f"{pace}/s" if pace else "") if part),
        "stage": run.stage or "",
        "stageWord": run.stage.capitalize() if run.stage else "–",
        "ratio": measured,
        "ratioWord": ratio(run.stability_ratio),
        "spikeIn": spike,
        "spikeTone": spike_tone,
        "spark": sparkline(run.sparkline),
        "loss": compact(run.loss),
        "lossTone": "danger" if run.loss is not None and not math.isfinite(run.loss) else "",
        "alert": told,
        "alertTone": alert_tone,
        "state": word,
        "stateTone": tone,
        "stateKey": "live" if run.state == RunState.RUNNING else run.state,
        "risk": risk(run),
        "created": unix_time(run.created_at) or 0.0,
    }


def state_words(run: RunSummary, now: float) -> tuple[str, str]:
    """The state of a run as written, and its tone."""
    if run.state == RunState.RUNNING:
        return "live", "ok"
    if run.state == RunState.STALE:
        seen = unix_time(run.last_seen_at)
        return ("stale" if seen is None else f"stale {duration(max(now - seen, 0.0))}"), "warn"
    return run.state, "danger" if run.state == RunState.CRASHED else "muted"


def spike_in(run: RunSummary) -> tuple[str, str]:
    """When the next spike is expected, in steps from now, and its tone."""
    if run.state in (RunState.FINISHED, RunState.CRASHED):
        return "–", "muted"
    if run.stage == Stage.SPIKING:
        return "now", "danger"
    if run.predicted_step is None or run.last_step is None:
        return "–", "muted"
    left = run.predicted_step.best - run.last_step
    if left <= 0:
        return "now", "danger"
    if run.last_alert is not None and run.last_alert.level == AlertLevel.WATCH:
        return f"~{left:,} steps", "muted"
    return steps(left), "danger"


def alert_words(alert: LastAlert | None, *, is_over: bool = False) -> tuple[str, str]:
    """The last alert in a few words, and its tone: urgent while it is open, more than a watch, and the run goes on."""
    if alert is None:
        return "–", "muted"
    urgent = alert.state != AlertState.RESOLVED and alert.level != AlertLevel.WATCH and not is_over
    return alert.title or alert.kind.replace("-", " "), "danger" if urgent else "muted"


def outcome_words(alert: Alert, outcome: Outcome) -> str:
    """A settled prediction: what it said, and what came."""
    said = "" if alert.predicted_step is None else f"predicted {alert.predicted_step.best:,}"
    if outcome.step is None:
        return ", ".join(part for part in (said, "did not come") if part)
    return f"{outcome.result}: {said}, came {outcome.step:,}"


def risk(run: RunSummary) -> float:
    """For sorting: a run that spikes, then those that will, then the nearest to the limit; the dead ones last."""
    closeness = run.stability_ratio or 0.0
    closeness = min(max(closeness, 0.0), 9.0) if math.isfinite(closeness) else 9.0
    if run.state in (RunState.FINISHED, RunState.CRASHED):
        return closeness / 100 + (0.5 if run.state == RunState.CRASHED else 0.0)
    weight = 10.0 if run.state == RunState.RUNNING else 5.0
    if run.stage == Stage.SPIKING:
        return weight + 50.0 + closeness
    if run.predicted_step is not None and run.last_step is not None:
        left = max(run.predicted_step.best - run.last_step, 0)
        return weight + 30.0 + 10.0 / (1.0 + left / 50.0)
    return weight + closeness


def _select(control_id: str, name: str, options: list[tuple[str, str]]) -> Component:
    return html.Label(
        [
            html.Span(f"{name}:"),
            html.Select([html.Option(word, value=value) for value, word in options], id=control_id),
        ],
        className="control select",
    )


def _curvature_head() -> list[Any]:
    return ["λ", html.Sub("max"), " / limit"]


def _count(number: str, words: str, tone: str = "") -> Component:
    return html.Span([html.B(number, className=tone), f" {words}"], className="count")


def _skeleton() -> list[Component]:
    return [html.Div(html.Span(className="bone"), className="fleet-row bones") for _ in range(6)]
