"""The components of the page that compares runs. Pure; the live part fills them with data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import plotly.graph_objects as go
from dash import dcc, html
from dash.development.base_component import Component

from client_sdk.answers import RunSummary
from client_sdk.vocabulary import LOSS
from dashboard.figures.scales import statistic
from dashboard.forms.attributes import aria, data
from dashboard.pages.compare_data import ComparedRun
from dashboard.pages.comparison import AXES, COLOURS, MAX_RUNS, REFERENCES, SCALES, STARTS, Comparison
from dashboard.shell.page import PageRequest

RUNS, ADD, METRICS, STATS = "compare-runs", "compare-add", "compare-metric", "compare-stat"
TABLE, CURVES, RATIO, MAPS = "compare-table", "compare-curves", "compare-ratio", "compare-maps"
CURVES_NOTE, RATIO_NOTE, MAPS_NOTE, TITLE = "compare-note", "compare-ratio-note", "compare-maps-note", "compare-title"
PANELS, EMPTY, WHOLE = "compare-panels", "compare-empty", "compare-whole"
CONFIG: Final[Any] = {"displayModeBar": False, "doubleClick": "autosize", "responsive": True, "scrollZoom": False}
NAME_CHARS: Final = 60
RUNS_OFFERED: Final = 300
"""Number of runs that the list of runs to add names, the newest ones."""


def layout(_request: PageRequest) -> Component:
    """Return the page before its first data."""
    return html.Div(
        [
            html.Div(
                [html.H1("Compare runs"), html.P("The address holds this comparison.", className="muted lead")],
                className="compare-top",
            ),
            html.Div(
                [
                    html.Ul(id=RUNS, className="compare-runs", **aria(label="Compared runs")),
                    html.Label(
                        [html.Span("Add a run", className="unseen"), html.Select(id=ADD, **data(adds="runs"))],
                        className="control select",
                    ),
                ],
                className="compare-chosen",
            ),
            html.Div(id=EMPTY, className="hidden"),
            html.Div(
                [
                    _section(
                        "Configuration differences", TABLE,
                        [html.Span("only the keys that differ", className="note")], [],
                        [html.Span(className="skeleton")],
                    ),
                    _section(
                        html.Span("Loss", id=TITLE), CURVES,
                        [html.Span(id=CURVES_NOTE, className="note")],
                        [
                            html.Div(id=WHOLE),
                            _choice("metric", "Metric", {LOSS: "loss"}, control_id=METRICS),
                            _choice("axis", "Horizontal axis", AXES),
                            _choice("start", "Alignment", STARTS),
                            _choice("scale", "Vertical axis", SCALES),
                            _choice("reference", "Reference", REFERENCES),
                        ],
                        [html.Div(className="skeleton chart")], box="compare-tall",
                    ),
                    _section(
                        "Curvature over its limit", RATIO,
                        [html.Span(id=RATIO_NOTE, className="note")], [],
                        [html.Div(className="skeleton chart")], box="compare-low",
                    ),
                    _section(
                        "Layers", MAPS,
                        [html.Span(id=MAPS_NOTE, className="note")],
                        [_choice("stat", "Statistic", {}, control_id=STATS), _choice("colours", "Colours", COLOURS)],
                        [html.Div(className="skeleton chart")],
                    ),
                ],
                id=PANELS,
                className="compare-panels",
            ),
        ],
        className="page compare",
        **data(addressed="yes"),
    )  # fmt: skip


def chosen_runs(
    wanted: Comparison, runs: Sequence[ComparedRun], missing: Sequence[str], titles: Mapping[str, str]
) -> list[Component]:
    """Return the list of the compared runs: the mark of each curve, a link to the run, and one that takes it out."""
    places = {run: place for place, run in enumerate(wanted.runs)}
    items: list[Component] = [
        html.Li(
            [
                html.I(className=f"run-mark run-{places[run.detail.id]}"),
                _to_run(run.detail, titles[run.detail.id]),
                html.Span(run.lacks or run.detail.state, className="warn" if run.lacks else "muted"),
                _remove(wanted, run.detail.id, titles[run.detail.id]),
            ]
        )
        for run in runs
    ]
    gone = [
        html.Li([html.Span(run[:NAME_CHARS], className="muted"), html.Span("no such run", className="warn"),
                 _remove(wanted, run, run[:NAME_CHARS])])
        for run in missing
    ]  # fmt: skip
    return items + gone


def offered_runs(wanted: Comparison, runs: Iterable[RunSummary], titles: Mapping[str, str]) -> list[Component]:
    """Return the options of the runs that can be added, the newest first."""
    if len(wanted.runs) >= MAX_RUNS:
        return [html.Option(f"{MAX_RUNS} runs at most", value="")]
    others = [run for run in runs if run.id not in wanted.runs]
    others.sort(key=lambda run: run.created_at, reverse=True)
    return [
        html.Option("Add a run …", value=""),
        *(html.Option(f"{_cut(titles[run.id])} · {_cut(run.project)} · {run.state}", value=run.id)
          for run in others[:RUNS_OFFERED]),
    ]  # fmt: skip


def metric_options(runs: Iterable[ComparedRun], wanted: str) -> list[Component]:
    """Return the options of the scalars that any of the runs has logged, the loss first.

    The wanted one is among them also before any run has it, so that the control shows what the address says.
    """
    logged = {name for run in runs for name in run.detail.scalars if "," not in name} | {wanted}
    return [html.Option("loss", value=LOSS), *(html.Option(_cut(name), value=name) for name in sorted(logged - {LOSS}))]


def stat_options(names: Sequence[str]) -> list[Component]:
    """Return the options of the statistics of layers."""
    return [html.Option(statistic(name).label, value=name) for name in names]


def nothing_chosen(*, is_alone: bool) -> Component:
    """Return what to do before there are runs to compare. ``is_alone``: whether the server has no runs at all."""
    words = "There are no runs on this server yet." if is_alone else "Choose runs in the list above."
    return html.Div(
        [html.H2("No run is chosen"), html.P([words, " ", dcc.Link("All runs", href="/")], className="muted")],
        className="card lonely",
    )


def whole_link(wanted: Comparison) -> Component | None:
    """Return the link that ends a zoom, or None without one."""
    if wanted.zoom is None:
        return None
    return dcc.Link("Show everything", href=wanted.everything().href, className="button as-link")


def graph(panel: str, figure: go.Figure, shape: int) -> Component:
    """Return the graph of a panel, whose zoom is written to the address.

    ``shape``: number of its pairs of axes. Another one makes a new graph, because Plotly fails where axes go.
    """
    drawn = dcc.Graph(id={"compare": panel}, figure=figure, config=CONFIG, responsive=True, className="graph")
    return html.Div(drawn, key=f"{panel}-{shape}", className="graph")


def _section(
    title: Component | str,
    body_id: str,
    notes: list[Component],
    controls: list[Component],
    before: list[Component],
    *,
    box: str = "",
) -> Component:
    head = html.Div(
        [html.Div([html.H2(title), *notes], className="panel-title"), html.Div(controls, className="controls")],
        className="panel-head",
    )
    return html.Section([head, html.Div(before, id=body_id, className=f"compare-box {box}")], className="card panel")


def _choice(name: str, label: str, words: Mapping[str, str], *, control_id: str = "") -> Component:
    """Return a native select that query.js keeps equal to a name in the address; the first option is the default."""
    named: dict[str, Any] = {"id": control_id} if control_id else {}
    options = [html.Option(word, value=value) for value, word in words.items()]
    return html.Label(
        [html.Span(label, className="unseen"), html.Select(options, **named, **data(query=name))],
        className="control select",
    )


def _remove(wanted: Comparison, run_id: str, title: str) -> Component:
    cross = html.Span("×", **aria(hidden="true"))
    return dcc.Link([cross, html.Span(f"Take {title} out", className="unseen")], href=wanted.without(run_id).href,
                    className="remove", title="Take out")  # fmt: skip


def _to_run(run: RunSummary, title: str) -> Component:
    return dcc.Link(title, href=f"/runs/{quote(run.id, safe='')}", title=_about(run))


def _about(run: RunSummary) -> str:
    return f"{run.title} · {run.project} · {run.id}"


def _cut(name: str) -> str:
    return name if len(name) <= NAME_CHARS else name[: NAME_CHARS - 1] + "…"
