"""The page of all runs. Its table is drawn in the browser by fleet.js from rows in a store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote

from dash import Dash, Input, dcc, html
from dash.development.base_component import Component

from client_sdk.answers import Alert, RunSummary
from client_sdk.vocabulary import AlertKind, RunState, Stage
from dashboard import ids
from dashboard.client import ApiClient
from dashboard.forms.attributes import aria
from dashboard.pages.alert_cards import tone, urgency
from dashboard.pages.danger import endangering, sentence
from dashboard.pages.fleet_rows import risk, row
from dashboard.pages.no_data import no_data
from dashboard.pages.run_titles import distinct_titles
from dashboard.pages.symbols import symbols
from dashboard.shell.clientside import clientside
from dashboard.shell.page import NavigationEntry, Page, PageRequest
from dashboard.stream.feed import News
from dashboard.stream.live_part import Refresh, Update
from dashboard.stream.view import View

DANGERS_SHOWN: Final = 5
"""Number of endangered runs with a line of their own above the table."""
COLUMNS: Final = ("Run", "Stage", "λ_max / limit", "Spike in", "Loss", "Last alert", "State")


def layout(_request: PageRequest) -> Component:
    """Return the page before its first data."""
    heads = [html.Span(symbols(name), role="columnheader") for name in COLUMNS]
    heads.insert(5, html.Span("", role="columnheader", **aria(hidden="true")))
    return html.Div(
        [
            html.H1("Runs", className="unseen"),
            html.Div(id=ids.FLEET_DANGER),
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
            className=f"danger-band {tone(alert)}",
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

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """Read all runs on the first call and after a gap; afterwards apply the news."""
        if news.resync or not self._runs:
            runs, alerts = await asyncio.gather(self._client.runs(), self._client.alerts())
            self._runs = {run.id: run for run in runs}
            self._alerts = {alert.id: alert for alert in alerts}
            self._sent, self._dangers = {}, ""
        self._runs.update(news.runs)
        self._alerts.update(news.alerts)
        return await asyncio.to_thread(self._changes, now)

    def idle(self, view: View, now: float) -> Refresh:
        """Update the rows of stale runs, which show the time since their last record."""
        return self._changes(now, only_stale=True)

    def _changes(self, now: float, *, only_stale: bool = False) -> Refresh:
        full = not self._sent
        rows: list[dict[str, Any]] = []
        titles = distinct_titles(self._runs.values())
        for run in self._runs.values():
            if only_stale and run.state != RunState.STALE:
                continue  # other rows do not change with time
            drawn = row(run, now, self._alerts, title=titles[run.id])
            if self._sent.get(run.id) != drawn:
                self._sent[run.id] = drawn
                rows.append(drawn)
        updates: list[Update] = []
        if rows or full:
            self._number += 1
            data = {"number": self._number, "full": full, "rows": rows}
            updates.append(Update(component=ids.FLEET, props={"data": data}))
            shown = counts(self._runs.values(), self._alerts.values())
            updates.append(Update(component=ids.FLEET_COUNTS, props={"children": shown if self._runs else []}))
        lines = dangers(self._runs.values(), self._alerts.values())
        if repr(lines) != self._dangers:
            self._dangers = repr(lines)
            updates.append(Update(component=ids.FLEET_DANGER, props={"children": lines}))
        total = len(self._runs)
        return Refresh(updates=updates, detail="1 run" if total == 1 else f"{total:,} runs")


def _select(control_id: str, name: str, options: list[tuple[str, str]]) -> Component:
    return html.Label(
        [
            html.Span(f"{name}:"),
            html.Select([html.Option(word, value=value) for value, word in options], id=control_id),
        ],
        className="control select",
    )


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
