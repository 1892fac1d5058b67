"""The page of all runs. Its table is drawn in the browser by fleet.js from rows in a store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from dash import Dash, Input, dcc, html
from dash.development.base_component import Component

from client_sdk.answers import Alert, RunSummary
from client_sdk.run_settings import settings_of
from client_sdk.vocabulary import AlertKind, RunState, Stage
from dashboard import ids
from dashboard.client import ApiClient
from dashboard.forms.attributes import aria, data
from dashboard.pages.alert_cards import urgency
from dashboard.pages.danger import danger_tone, endangering, sentence
from dashboard.pages.fleet_query import GROUPS, SORTS, STATES, FleetQuery, group_keys, grouped, parse_fleet_query
from dashboard.pages.fleet_rows import risk, row
from dashboard.pages.no_data import no_data
from dashboard.pages.queried import queried_select, select_options
from dashboard.pages.run_titles import distinct_titles
from dashboard.pages.symbols import symbols
from dashboard.shell.clientside import clientside
from dashboard.shell.page import NavigationEntry, Page, PageRequest
from dashboard.stream.feed import News
from dashboard.stream.live_part import Refresh, Update
from dashboard.stream.view import View

DANGERS_SHOWN: Final = 5
"""Number of endangered runs with a line of their own above the table."""
COLUMNS: Final = ("", "Run", "Stage", "λ_max / limit", "Spike in", "Leading layer", "Loss", "", "Last alert", "State")
SEARCH_HINT: Final = "Search: name, tag:base, lr>1e-3   /"


def layout(_request: PageRequest) -> Component:
    """Return the page before its first data."""
    heads = [
        html.Span(symbols(name), role="columnheader") if name else html.Span("", **aria(hidden="true"))
        for name in COLUMNS
    ]
    return html.Div(
        [
            html.H1("Runs", className="unseen"),
            html.Div(id=ids.FLEET_DANGER),
            html.Div(
                [
                    html.Label(
                        [
                            html.Span("Search the runs", className="unseen"),
                            dcc.Input(
                                id="fleet-search", type="search", placeholder=SEARCH_HINT, className="control search",
                                autoComplete="off",
                            ),
                        ],
                        **data(queried="q"),
                    ),
                    queried_select("Project", {"": "all"}, "project", control_id=ids.FLEET_PROJECT),
                    queried_select("State", STATES, "state", control_id="fleet-state"),
                    queried_select("Sort", SORTS, "sort", control_id="fleet-sort"),
                    queried_select("Group", GROUPS, "group", control_id=ids.FLEET_GROUP),
                    html.Details(
                        [html.Summary("Views"), html.Div(id="fleet-views", className="menu")],
                        className="panel-menu views",
                    ),
                    html.Div(id=ids.FLEET_COUNTS, className="counts"),
                ],
                className="toolbar",
            ),
            html.Div(
                [
                    html.A(id="fleet-compare", href="/compare", className="button strong"),
                    html.Button("Clear", type="button", id="fleet-clear", className="button"),
                ],
                id="fleet-picked",
                className="picked hidden",
            ),
            html.Div(
                [
                    html.Div(heads, className="fleet-head", role="row"),
                    html.Div(id=ids.FLEET_TABLE, role="rowgroup"),
                    html.Div(_skeleton(), className="fleet-skeletons", **aria(hidden="true")),
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
        **data(addressed="yes"),
    )  # fmt: skip


def counts(runs: Iterable[RunSummary], alerts: Iterable[Alert]) -> list[Component]:
    """Return the numbers of runs that are about to spike and that are live, and of predictions that came true."""
    known = list(runs)
    live = [run for run in known if run.state == RunState.RUNNING]
    risky = [run for run in live if run.predicted_step is not None or run.stage in (Stage.SPIKING, Stage.NONFINITE)]
    settled = [a.outcome.result for a in alerts if a.kind == AlertKind.SPIKE_PREDICTED and a.outcome is not None]
    shown = [
        _count(str(len(risky)), "about to spike", "danger" if risky else ""),
        _count(str(len(live)), "live"),
    ]
    if settled:
        came = sum(result != "false" for result in settled)
        shown.append(_count(f"{came} of {len(settled)}", "predictions came true"))
    return shown


def dangers(runs: Iterable[RunSummary], alerts: Iterable[Alert]) -> list[Component]:
    """Return one line for each endangered run, the most urgent first, with a link to the run."""
    of_run: dict[str, list[Alert]] = {}
    for item in alerts:
        if item.is_open:
            of_run.setdefault(item.run_id, []).append(item)
    found = [(run, alert) for run in runs if (alert := endangering(of_run.get(run.id, ()), run.state)) is not None]
    found.sort(key=lambda pair: (risk(pair[0]), urgency(pair[1])), reverse=True)
    lines: list[Component] = [
        dcc.Link(
            [html.B(run.title, title=run.title), html.Span(symbols(sentence(alert, run)))],
            href=f"/runs/{quote(run.id, safe='')}",
            className=f"danger-band {danger_tone(alert, run)}",
        )
        for run, alert in found[:DANGERS_SHOWN]
    ]
    if len(found) > DANGERS_SHOWN:
        lines.append(html.P(f"and {len(found) - DANGERS_SHOWN} more in the table", className="note"))
    return lines


class FleetLive:
    """Live part with all runs, which sends only rows that changed.

    Updates are numbered. A store keeps one value, so a busy browser may receive the second of two updates without the
    first; fleet.js detects the gap and requests a new session, which sends every row.
    """

    run_id = None

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._runs: dict[str, RunSummary] = {}
        self._alerts: dict[str, Alert] = {}
        self._sent: dict[str, dict[str, Any]] = {}
        self._dangers = repr([])
        self._number = 0
        self._settings: dict[str, tuple[RunSummary, Mapping[str, Any]]] = {}
        self._groups: list[dict[str, Any]] = []
        self._query = FleetQuery()
        self._pinned: tuple[str, ...] = ()
        self._choices: tuple[frozenset[str], int] | None = None
        """Runs, and the number of those with an optimizer, whose projects and keys were sent last."""

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """Read all runs on the first call and after a gap; afterwards apply the news."""
        if news.resync or not self._runs:
            runs, alerts = await asyncio.gather(self._client.runs(), self._client.alerts())
            self._runs = {run.id: run for run in runs}
            self._alerts = {alert.id: alert for alert in alerts}
            self._sent, self._dangers, self._choices = {}, "", None
        self._query, self._pinned = parse_fleet_query(view.query), view.pinned
        self._runs.update(news.runs)
        self._alerts.update(news.alerts)
        gone = [run_id for run_id in news.deleted if self._runs.pop(run_id, None) is not None]
        return await asyncio.to_thread(self._changes, now, gone=gone)

    def idle(self, view: View, now: float) -> Refresh:
        """Update the rows of stale runs, which show the time since their last record."""
        return self._changes(now, only_stale=True)

    def _changes(self, now: float, *, only_stale: bool = False, gone: Sequence[str] = ()) -> Refresh:
        total = len(self._runs)
        detail = "1 run" if total == 1 else f"{total:,} runs"
        if only_stale and not any(run.state == RunState.STALE for run in self._runs.values()):
            return Refresh(detail=detail)
        full = not self._sent
        rows: list[dict[str, Any]] = []
        titles = distinct_titles(self._runs.values())
        leading = _leading(self._alerts.values())
        for run in self._runs.values():
            if only_stale and run.state != RunState.STALE:
                continue  # other rows do not change with time
            drawn = row(run, now, self._alerts, title=titles[run.id], leading=leading.get(run.id, ""))
            if self._sent.get(run.id) != drawn:
                self._sent[run.id] = drawn
                rows.append(drawn)
        updates: list[Update] = []
        for run_id in gone:
            self._sent.pop(run_id, None)
        found = grouped(self._runs.values(), self._query, self._settings_of, pinned=self._pinned, titles=titles)
        groups = [
            {"key": group.key, "label": group.label, "folded": group.is_folded, "ids": [run.id for run in group.runs]}
            for group in found
        ]
        if rows or full or gone or groups != self._groups:
            self._number += 1
            self._groups = groups
            sent = {"number": self._number, "full": full, "rows": rows, "gone": list(gone), "groups": groups}
            updates += [Update(component=ids.FLEET, props={"data": sent}), *self._choices_updates()]
            shown = counts(self._runs.values(), self._alerts.values())
            updates.append(Update(component=ids.FLEET_COUNTS, props={"children": shown if self._runs else []}))
        lines = dangers(self._runs.values(), self._alerts.values())
        if repr(lines) != self._dangers:
            self._dangers = repr(lines)
            updates.append(Update(component=ids.FLEET_DANGER, props={"children": lines}))
        return Refresh(updates=updates, detail=detail)

    def _settings_of(self, run: RunSummary) -> Mapping[str, Any]:
        """Return the configuration of a run with one key for each value, computed once."""
        known = self._settings.get(run.id)
        if known is None or known[0].config != run.config or known[0].optimizer != run.optimizer:
            known = self._settings[run.id] = run, settings_of(run)
        return known[1]

    def _choices_updates(self) -> list[Update]:
        """Return the updates of the projects and of the keys to group by, if there are others than before."""
        # The settings of a run change only when its optimizer arrives.
        known = frozenset(self._runs), sum(run.optimizer is not None for run in self._runs.values())
        if known == self._choices:
            return []
        self._choices = known
        projects = sorted({run.project for run in self._runs.values()})
        keys = group_keys(self._settings_of(run) for run in self._runs.values())
        groups = {**GROUPS, **{key: key for key in keys if key not in GROUPS}}
        return [
            Update(
                component=ids.FLEET_PROJECT,
                props={"children": select_options({"": "all", **{name: name for name in projects}})},
            ),
            Update(component=ids.FLEET_GROUP, props={"children": select_options(groups)}),
        ]


def _leading(alerts: Iterable[Alert]) -> dict[str, str]:
    """Return the first layer of the most urgent open alert of each run that names any, keyed by run."""
    named = sorted((alert for alert in alerts if alert.is_open and alert.layers), key=urgency)
    return {alert.run_id: alert.layers[0] for alert in named}


def _count(number: str, words: str, tone: str = "") -> Component:
    return html.Span([html.B(number, className=tone), f" {words}"], className="count")


def _skeleton() -> list[Component]:
    return [html.Div(html.Span(className="skeleton"), className="fleet-row skeletons") for _ in range(6)]


def _register_callbacks(app: Dash) -> None:
    clientside(app, "fleet", Input(ids.FLEET, "data"))


PAGE: Final = Page(
    name="fleet",
    path="/",
    navigation=NavigationEntry(label="Fleet", order=1),
    layout=layout,
    live=lambda client, _request: FleetLive(client),
    callbacks=_register_callbacks,
)
