"""The components of the page of one run. Pure; the live part fills them with data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import plotly.graph_objects as go
from dash import dcc, html
from dash.development.base_component import Component

from client_sdk.answers import RunDetail, RunSummary
from client_sdk.vocabulary import LOSS, Stage
from dashboard import ids
from dashboard.figures.scales import statistic
from dashboard.forms.attributes import aria, data
from dashboard.numbers import count, duration, ratio, steps, unix_time
from dashboard.pages import loss_choice, replay
from dashboard.pages.danger import time_left
from dashboard.pages.fleet_rows import loss_words, spike_in
from dashboard.pages.no_data import no_data
from dashboard.pages.symbols import symbols
from dashboard.shell.page import PageRequest

GRAPH_CONFIG: Final[Any] = {
    "displaylogo": False,
    "displayModeBar": "hover",
    "doubleClick": False,
    "modeBarButtons": [["toImage"]],
    "toImageButtonOptions": {"format": "png", "scale": 2, "filename": "spikewatch"},
    "responsive": True,
    "scrollZoom": False,
}
WINDOWS: Final = (("", "all steps"), ("10000", "last 10,000"), ("1000", "last 1,000"), ("200", "last 200"))
DEFAULT_STAT: Final = "rms_ratio"
CURVATURE: Final = "λ_max / limit"
PLAIN_LOSS: Final = "scalar:loss"
"""Value of the option for the scalar named loss in a run whose loss is another one."""
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
                            loss_choice.control(),
                        ],
                        className="title",
                    ),
                    html.Dl(kpis(None), id=ids.RUN_KPIS, className="kpis"),
                ],
                className="run-top",
            ),
            html.Div(id=ids.RUN_DANGER),
            html.Div(no_data(connected=True), id=ids.RUN_EMPTY, className="hidden"),
            html.Div(
                [
                    html.Div(
                        [
                            _loss_panel(),
                            _curvature_panel(),
                            _layers_panel(),
                            _histogram_panel(),
                            replay.section(request.subject),
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
        _kpi(symbols(CURVATURE), ratio(measured), "danger" if over else ""),
        _kpi(
            "Stage",
            [html.I(className=f"square {run.stage}"), run.stage_words] if run.stage else "–",
            stage_tone,
            run.reason_words,
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
    return [html.Option(statistic(name).label, value=name) for name in names or [DEFAULT_STAT]]


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


def graph(component_id: dict[str, str], figure: go.Figure) -> Component:
    """Return a graph with its first figure.

    It is created together with its data, because Plotly fails if axes change during the first drawing.
    """
    return dcc.Graph(id=component_id, figure=figure, config=GRAPH_CONFIG, responsive=True, className="graph")


def _panel(name: str, title: list[Component], controls: list[Component]) -> Component:
    head = [html.Div(title, className="panel-title"), html.Div(controls, className="controls")]
    cover = html.Div(className="skeleton cover", **aria(hidden="true"))
    return html.Section(
        [
            html.Div(head, className="panel-head"),
            html.Div([cover], className=f"graph-box {name}-height", id=ids.panel_box(name)),
        ],
        className=f"card panel {name}",
        **aria(label=name),
    )


def _loss_panel() -> Component:
    title = [html.H2("Loss", id=ids.LOSS_TITLE), html.Span("", id=ids.LOSS_NOTE, className="note")]
    controls = [
        html.Button(
            "Follow live", id="follow", className="button follow", type="button", title="Back to the newest steps"
        ),
        _pick(
            "attempt",
            ids.ATTEMPT_PICK,
            "Attempt",
            [html.Option("latest steps", value="")],
            label_id=ids.ATTEMPT_CONTROL,
            hidden=True,
        ),
        _pick("metric", ids.METRIC_PICK, "Metric", [html.Option("loss", value="loss")]),
        _pick("window", "window-pick", "Steps shown", [html.Option(word, value=value) for value, word in WINDOWS]),
    ]
    return _panel("loss", title, controls)


def _curvature_panel() -> Component:
    title = [
        html.H2("Curvature against the limit 2/η"),
        html.Span("stable below the line; the strip shows the stage", id=ids.CURVATURE_NOTE, className="note"),
    ]
    return _panel("curvature", title, [])


def _layers_panel() -> Component:
    title = [html.H2("Layers"), html.Span("", id=ids.LAYERS_NOTE, className="note")]
    stat = [html.Option(statistic(DEFAULT_STAT).label, value=DEFAULT_STAT)]
    scale = [
        html.Option("against usual", value="usual"),
        *(html.Option(f"{word} colour", value=word) for word in ("log", "linear")),
    ]
    reduce = [html.Option(f"{word} of steps", value=word) for word in ("max", "min", "last")]
    controls = [
        _pick("stat", ids.STAT_PICK, "Statistic", stat),
        _pick("scale", "scale-pick", "Colour scale", scale),
        _pick("reduce", "reduce-pick", "Of several steps", reduce),
    ]
    return _panel("layers", title, controls)


def _histogram_panel() -> Component:
    title = [
        html.H2("Distribution"),
        html.Span("click a cell of the layers above", id=ids.HISTOGRAM_TITLE, className="note"),
    ]
    boxes = [
        html.Div([html.H3(words), html.Div(id=ids.histogram(which), className="graph")], className="histogram")
        for which, words in (("update", "update u"), ("ratio", "ratio r = m̂/√v̂"))
    ]
    return html.Section(
        [
            html.Div(html.Div(title, className="panel-title"), className="panel-head"),
            html.Div(boxes, className="histograms"),
        ],
        id=ids.HISTOGRAM_CARD,
        className="card panel hidden",
    )


def _pick(
    name: str,
    control_id: str,
    label: str,
    options: Sequence[Component],
    *,
    label_id: str | None = None,
    hidden: bool = False,
) -> Component:
    """Return a native select whose value view.js copies into the view."""
    named: dict[str, Any] = {} if label_id is None else {"id": label_id}
    return html.Label(
        [html.Span(label, className="unseen"), html.Select(options, id=control_id, **data(pick=name))],
        className="control select hidden" if hidden else "control select",
        **named,
    )
