"""The panels of the run page before their first data: headings, controls, and boxes for the figures. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import plotly.graph_objects as go
from dash import dcc, html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.figures.scales import statistic
from dashboard.forms.attributes import aria, data
from dashboard.stream.view import MORE_PANELS

GRAPH_CONFIG: Final[Any] = {
    "displayModeBar": False,
    "doubleClick": False,
    "responsive": True,
    "scrollZoom": False,
}
WINDOWS: Final = (("", "all steps"), ("10000", "last 10,000"), ("1000", "last 1,000"), ("200", "last 200"))
AXES: Final = (("", "axis: automatic"), ("log", "axis: log"), ("linear", "axis: linear"))
SMOOTHING: Final = (("", "not smoothed"), ("5", "mean of 5"), ("20", "mean of 20"), ("100", "mean of 100"))
DEFAULT_STAT: Final = "rms_ratio"
HISTOGRAMS_NOTE: Final = "r = m̂/√v̂ of this layer; a second mode away from 0 means gradients at the size of ε"
FORECAST_NOTE: Final = "dot: when it was said; bar and tick: the steps that it named; line: the spike that came"


def panels() -> list[Component]:
    """Return all panels in their order. Those that not every run has are hidden until they have data."""
    return [
        _loss_panel(),
        *(_more_panel(slot) for slot in range(MORE_PANELS)),
        _forecast_panel(),
        _curvature_panel(),
        _layers_panel(),
        _panel("layer", "Layer", "", [_menu("layer", has_line=False)], hidden=True),
        _panel("over-time", "Ratio r over time", HISTOGRAMS_NOTE, [_menu("over-time", has_line=False)], hidden=True),
        _histogram_panel(),
    ]


def graph(component_id: dict[str, str], figure: go.Figure) -> Component:
    """Return a graph with its first figure.

    It is created together with its data, because Plotly fails if axes change during the first drawing.
    """
    return dcc.Graph(id=component_id, figure=figure, config=GRAPH_CONFIG, responsive=True, className="graph")


def _panel(name: str, title: str, note: str, controls: list[Component], *, hidden: bool = False) -> Component:
    heading = [html.H2(title, id=ids.panel_title(name)), html.Span(note, id=ids.panel_note(name), className="note")]
    head = [html.Div(heading, className="panel-title"), html.Div(controls, className="controls")]
    cover = html.Div(className="skeleton cover", **aria(hidden="true"))
    return html.Section(
        [
            html.Div(head, className="panel-head"),
            html.Div([cover], className=f"graph-box {name}-height", id=ids.panel_box(name)),
        ],
        id=ids.panel_card(name),
        className=panel_class(name, hidden=hidden),
        **aria(label=title),
    )


def panel_class(name: str, *, hidden: bool) -> str:
    """Return the classes of the card of a panel."""
    return f"card panel {name}{' hidden' if hidden else ''}"


def _loss_panel() -> Component:
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
        _pick("window", "window-pick", "Steps shown", _options(WINDOWS)),
        _menu("loss", adds_metrics=True),
    ]
    return _panel("loss", "Loss", "", controls)


def _more_panel(slot: int) -> Component:
    name = ids.more(slot)
    controls = [_pick(name, ids.metric_pick(slot), "Metric", [html.Option("metric", value="")]), _menu(name)]
    return _panel(name, "Metric", "", controls, hidden=True)


def _forecast_panel() -> Component:
    return _panel("forecast", "Forecasts", FORECAST_NOTE, [], hidden=True)


def _curvature_panel() -> Component:
    note = "stable below the line; the strip shows the stage"
    return _panel("curvature", "Curvature against the limit 2/η", note, [_menu("curvature", has_line=False)])


def _layers_panel() -> Component:
    stat = [html.Option(statistic(DEFAULT_STAT).label, value=DEFAULT_STAT)]
    scale = [("usual", "against usual"), ("log", "log colour"), ("linear", "linear colour")]
    reduce = [(word, f"{word} of steps") for word in ("max", "min", "last")]
    order = [("", "by block"), ("model", "every layer"), ("risk", "by risk")]
    search = html.Label(
        [
            html.Span("Search the layers", className="unseen"),
            dcc.Input(
                id="layer-search", type="search", placeholder="Search layers", className="control search",
                autoComplete="off",
            ),
        ]
    )  # fmt: skip
    controls = [
        search,
        _pick("order", "order-pick", "Order of the rows", _options(order)),
        html.Details(
            [html.Summary("Blocks", title="Fold and unfold blocks of layers"), html.Div(className="menu")],
            className="panel-menu blocks",
        ),
        _pick("stat", ids.STAT_PICK, "Statistic", stat),
        _pick("scale", "scale-pick", "Colour scale", _options(scale)),
        _pick("reduce", "reduce-pick", "Of several steps", _options(reduce)),
        _menu("layers", has_line=False),
    ]
    return _panel("layers", "Layers", "", controls)


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


def _menu(name: str, *, has_line: bool = True, adds_metrics: bool = False) -> Component:
    """Return the folded controls of a panel: axis and smoothing of a line, and what can be taken along."""
    rows: list[Component] = []
    if has_line:
        rows += [
            _pick(f"axis-{name}", f"axis-{name}-pick", "Axis", _options(AXES)),
            _pick(f"smooth-{name}", f"smooth-{name}-pick", "Smoothing", _options(SMOOTHING)),
        ]
    if adds_metrics:
        rows.append(html.Button("Add a metric", type="button", className="button", **data(panel=name, does="add")))
    rows += [
        html.Button(word, type="button", className="button", **data(panel=name, does=does))
        for word, does in (("Picture (PNG)", "png"), ("Values (CSV)", "csv"), ("Copy link", "link"))
    ]
    summary = html.Summary("⋯", title="Axis, smoothing, picture, values, link", **aria(label="More of this panel"))
    return html.Details([summary, html.Div(rows, className="menu")], className="panel-menu")


def _options(pairs: Sequence[tuple[str, str]]) -> list[Component]:
    return [html.Option(word, value=value) for value, word in pairs]


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
