"""The components of the page of one run. Pure; the live part fills them with data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from dash import dcc, html
from dash.development.base_component import Component

from client_sdk.answers import RunDetail, RunSummary
from client_sdk.vocabulary import CURVE_MEANINGS, LOSS, STAGE_MEANINGS, Stage
from dashboard import ids
from dashboard.figures.curvature import CURVES, LIMIT
from dashboard.figures.scales import statistic
from dashboard.forms.attributes import aria, data
from dashboard.numbers import count, duration, ratio, steps, unix_time
from dashboard.pages import loss_choice, replay, run_audit, run_drawer, run_panels
from dashboard.pages.danger import time_left
from dashboard.pages.fleet_rows import loss_words, spike_in
from dashboard.pages.no_data import no_data
from dashboard.pages.run_notes import FRESHNESS, RHYTHM
from dashboard.pages.run_panels import DEFAULT_STAT
from dashboard.pages.symbols import symbols
from dashboard.shell.page import PageRequest

CURVATURE: Final = "λ_max / limit"
PLAIN_LOSS: Final = "scalar:loss"
"""Value of the option for the scalar named loss in a run whose loss is another one."""
SECOND: Final = ("grad_norm", "grad_norm_before_clip", "lr")
"""Scalars that a run without curvature shows beside the loss, the first that it has."""
BY_THE_WAY: Final = frozenset({*RHYTHM, *FRESHNESS, LIMIT, "step_time"})
"""Scalars that are about the measuring, and are chosen for no panel unless somebody asks for them."""
STAT_ORDER: Final = (DEFAULT_STAT, "grad_norm", "update_ratio")


def layout(request: PageRequest) -> Component:
    """Return the page before its first data, with every part in its final place."""
    return html.Div(
        [
            html.Div(
                [
                    html.Div(
                        [
                            html.Div(head(None), id=ids.RUN_HEAD, className="title"),
                            html.Div([loss_choice.control(), run_drawer.opener()], className="run-controls"),
                        ],
                        className="title",
                    ),
                    html.Dl(kpis(None), id=ids.RUN_KPIS, className="kpis"),
                ],
                className="run-top",
            ),
            run_drawer.drawer(),
            html.Div(id=ids.RUN_DANGER),
            html.Div(no_data(connected=True), id=ids.RUN_EMPTY, className="hidden"),
            html.Div(
                [
                    html.Div(
                        [
                            *run_panels.panels(),
                            replay.section(request.subject),
                            run_audit.section(),
                        ],
                        className="panels",
                    ),
                    html.Aside(
                        [
                            html.Div(
                                [html.Span(className="skeleton"), html.Span(className="skeleton")],
                                className="card skeletons",
                            )
                        ],
                        id=ids.ALERT_COLUMN,
                        className="alerts",
                        **aria(label="Alerts"),
                    ),
                ],
                id=ids.RUN_PANELS,
                className="run-body",
            ),
        ],
        className="page run",
        **data(run=request.subject),
    )


def head(run: RunDetail | None, now: float | None = None) -> list[Component]:
    """Return the name of the run and a line with its project, optimizer, size and age."""
    if run is None:
        return [
            html.H1(html.Span(className="skeleton wide")),
            html.P(html.Span(className="skeleton"), className="about"),
        ]
    line = about(run, now)
    parts: list[Component] = [html.H1(run.title, title=run.title), html.P(line, className="about", title=line)]
    marks = [*(["archived"] if run.archived else []), *run.tags]
    if marks:
        parts.append(html.P([html.Span(mark, className="pill") for mark in marks], className="pills"))
    if run.reason_words:
        parts.append(html.P(f"Not judged: {run.reason_words}.", className="note reason"))
    return parts


def no_such_run(run_id: str) -> list[Component]:
    """Return the headline for an address without a run."""
    return [
        html.H1("No such run"),
        html.P(
            [f"{run_id[:80]}: it may have been deleted, or the address was mistyped. ", dcc.Link("All runs", href="/")],
            className="about",
        ),
    ]


def about(run: RunDetail, now: float | None = None) -> str:
    """Return project, optimizer, size and age in one line, without the parts that are missing."""
    parts = [run.project]
    if run.optimizer is not None:
        optimizer = run.optimizer
        lr = run.lr if run.lr is not None else optimizer.lr
        words = optimizer.name + (f" lr {lr:.3g}" if lr is not None else "")
        if optimizer.beta1 is not None and optimizer.beta2 is not None:
            words += f", β {optimizer.beta1:g} / {optimizer.beta2:g}"
        parts.append(words)
    layers = run.layer_count or len(run.layers)
    if run.parameter_count:
        parts.append(f"{count(run.parameter_count)} parameters in {count(layers)} layers")
    elif layers:
        parts.append(f"{count(layers)} layers")
    created = unix_time(run.created_at)
    if created is not None and now is not None:
        parts.append(f"started {duration(now - created)} ago")
    return " · ".join(part for part in parts if part)


def kpis(run: RunSummary | None) -> list[Component]:
    """Return the four numbers at the top: loss, curvature, stage and expected spike; skeletons for None."""
    if run is None:
        return [
            _kpi(name, html.Span(className="skeleton short"))
            for name in ("Loss", symbols(CURVATURE), "Stage", "Spike expected in")
        ]
    measured = run.stability_ratio
    over = measured is not None and math.isfinite(measured) and measured >= 1.0
    expected, tone = spike_in(run)
    if run.predicted_step is not None and run.last_step is not None and run.predicted_step.best > run.last_step:
        left = time_left(run.predicted_step.best - run.last_step, run.step_rate)
        expected = f"{expected} · {left}" if expected.endswith("steps") and left != expected.lstrip("~") else expected
    tones: dict[str, str] = {
        Stage.STABLE: "ok",
        Stage.UNSTABLE: "warn",
        Stage.SPIKING: "danger",
        Stage.NONFINITE: "danger",
    }
    stage_tone = tones.get(run.stage or "", "")
    return [
        _kpi("Loss", *loss_words(run)),
        _kpi(symbols(CURVATURE), ratio(measured), "danger" if over else "", CURVE_MEANINGS["stability_ratio"]),
        _kpi(
            "Stage",
            [html.I(className=f"square {run.stage}"), run.stage_words] if run.stage else "–",
            stage_tone,
            " ".join(filter(None, (STAGE_MEANINGS.get(run.stage or "", ""), run.reason_words))),
        ),
        _kpi("Spike expected in", expected, tone if expected != "–" else "muted"),
    ]


def step_words(run: RunSummary, pace: str) -> str:
    """Return the newest step and the rate for the header. ``pace``: steps per second as text, or empty."""
    if run.last_step is None:
        return "no steps yet"
    return f"step {count(run.last_step)}" + (f" · {pace} steps/s" if pace else "")


def stat_options(run: RunDetail) -> list[Component]:
    """Return the options of the statistics that a run has, the most informative first."""
    known = [name for name in STAT_ORDER if name in run.statistics]
    names = known + [name for name in run.statistics if name not in known]
    return [
        html.Option(statistic(name).label, value=name, title=statistic(name).meaning)
        for name in names or [DEFAULT_STAT]
    ]


def chosen_stat(run: RunDetail, wanted: str | None) -> str:
    """Return the wanted statistic if the run has it, otherwise the first option."""
    if wanted and wanted in run.statistics:
        return wanted
    return next((name for name in STAT_ORDER if name in run.statistics), (*run.statistics, DEFAULT_STAT)[0])


def chosen_metric(run: RunDetail, wanted: str) -> str:
    """Return the wanted scalar if the run has it, otherwise the loss under the name that it has.

    The value "loss" wants the loss, `PLAIN_LOSS` the scalar of that name.
    """
    if wanted == PLAIN_LOSS and LOSS in run.scalars:
        return LOSS
    return wanted if wanted in run.scalars and (wanted != LOSS or run.loss_name is None) else run.loss_name or LOSS


def more_metrics(run: RunDetail, wanted: Sequence[str | None], metric: str) -> list[str | None]:
    """Return the scalar in each further panel, None for a panel that is not shown.

    A run without curvature shows a second scalar unless it is told otherwise, in the height that curvature would have.
    """
    chosen = [None if name is None or name not in run.scalars else name for name in wanted]
    if wanted and wanted[0] is None and not any(name in run.scalars for name in CURVES if name != LIMIT):
        logged = [name for name in run.scalars if name != metric and name not in BY_THE_WAY and "," not in name]
        chosen[0] = next((name for name in (*SECOND, *sorted(logged)) if name in logged), None)
    return chosen


def metric_options(run: RunDetail) -> list[Component]:
    """Return the options of the scalars that a run logged, the loss first.

    A name with a comma is left out, because the API separates the names of a query by commas.
    """
    first = run.loss_name or LOSS
    names = [first, *sorted(name for name in run.scalars if name != first and "," not in name)]
    return [
        html.Option(
            name if len(name) <= 40 else name[:39] + "…",
            value=LOSS if name == first else PLAIN_LOSS if name == LOSS else name,
        )
        for name in names
    ]


def more_options(run: RunDetail) -> list[Component]:
    """Return the options of the scalar in a further panel."""
    names = [name for name in sorted(run.scalars) if "," not in name]
    shown = [html.Option(name if len(name) <= 40 else name[:39] + "…", value=name) for name in names]
    return [html.Option("metric", value=""), *shown, html.Option("remove this panel", value="-")]


def attempt_options(run: RunDetail) -> list[Component]:
    """Return the options of the attempts of a run, the steps that no later attempt replaced first."""
    numbers = sorted({item.attempt for item in run.attempts})
    return [html.Option("latest steps", value=""), *(html.Option(f"attempt {n}", value=str(n)) for n in numbers)]


def chosen_attempt(run: RunDetail, wanted: int | None) -> int | None:
    """Return the wanted attempt if the run has it, otherwise None for the latest steps."""
    return wanted if any(item.attempt == wanted for item in run.attempts) else None


def stale_words(run: RunSummary, now: float) -> str:
    """Return the time since the last record of a stale run in words."""
    seen = unix_time(run.last_seen_at)
    return "nothing new" if seen is None else f"nothing for {duration(now - seen)} · {steps(run.last_step)}"


def _kpi(name: Any, value: Any, tone: str = "", note: str = "") -> Component:
    """Return a number with its name. ``note`` is shown when the pointer rests on it."""
    return html.Div([html.Dt(name), html.Dd(value, className=tone)], className="kpi", title=note or None)
