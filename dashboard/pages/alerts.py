"""The page of all alerts by incident, open ones first, then the newest; its address holds what is searched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from dash import dcc, html
from dash.development.base_component import Component

from client_sdk.answers import Alert, Precision, RunSummary
from client_sdk.vocabulary import Stage
from dashboard.client import ApiClient
from dashboard.forms.attributes import data
from dashboard.numbers import steps
from dashboard.pages.alert_actions import ALERT_ACTIONS
from dashboard.pages.alert_cards import OUTCOMES, alert_row
from dashboard.pages.alert_list import KINDS, LEVELS, STATES, AlertQuery, incidents, parse_alert_query
from dashboard.pages.queried import queried_select, select_options
from dashboard.pages.run_titles import distinct_titles
from dashboard.shell.page import NavigationEntry, Page, PageRequest
from dashboard.stream.feed import News
from dashboard.stream.live_part import Refresh, Update
from dashboard.stream.view import View

SHOWN = 200
READ: Final = 1_000
"""Number of the newest alerts that are searched."""
PROJECTS: Final = "alert-project"
LIST: Final = "alert-list"  # id of the component with the alerts
PRECISION: Final = "alert-precision"  # id of the component with the outcomes of predictions


def layout(_request: PageRequest) -> Component:
    """Return the page before its first data."""
    rows = [html.Div(html.Span(className="skeleton"), className="alert-row skeletons") for _ in range(5)]
    return html.Div(
        [
            html.H1("Alerts"),
            html.P("Open ones first, then the newest, by incident. Each leads to its run.", className="muted lead"),
            html.P(id=PRECISION, className="precision"),
            html.Div(
                [
                    html.Label(
                        [
                            html.Span("Search the alerts", className="unseen"),
                            dcc.Input(
                                id="alert-search", type="search", placeholder="Search alerts, runs, layers   /",
                                className="control search", autoComplete="off",
                            ),
                        ],
                        **data(queried="q"),
                    ),
                    queried_select("Level", LEVELS, "level"),
                    queried_select("State", STATES, "state"),
                    queried_select("Kind", KINDS, "kind"),
                    queried_select("Project", {"": "all"}, "project", control_id=PROJECTS),
                ],
                className="toolbar",
            ),
            html.Div(rows, id=LIST, className="card alert-list"),
        ],
        className="page",
        **data(addressed="yes"),
    )  # fmt: skip


def rows(
    alerts: Sequence[Alert], runs: Mapping[str, RunSummary], now: float, query: AlertQuery | None = None
) -> list[Component]:
    """Return the list of alerts by incident. ``runs``: the runs, keyed by run id. ``query``: None lists all."""
    if not alerts:
        return [html.P(_none_words(runs.values()), className="muted none")]
    found = incidents(alerts, query or AlertQuery(), runs)
    if not found:
        return [html.P("No alert matches.", className="muted none")]
    titles = distinct_titles(runs.values())
    shown: list[Component] = [_incident(members, titles, now) for members in found[:SHOWN]]
    if len(found) > SHOWN:
        shown.append(html.P(f"and {len(found) - SHOWN:,} earlier incidents: narrow the search", className="note none"))
    return shown


def _incident(members: Sequence[Alert], titles: Mapping[str, str], now: float) -> Component:
    """Return the alerts of an incident: the one that opened it, and below it what followed."""
    lines = [alert_row(alert, titles.get(alert.run_id, alert.run_id[:8]), now) for alert in members]
    if len(lines) == 1:
        return lines[0]
    words = f"one incident of {len(lines)} alerts"
    return html.Div([lines[0], html.Div(lines[1:], className="followed")], className="incident", title=words)


def _none_words(runs: Iterable[RunSummary]) -> str:
    """Return the sentence for a list without alerts, which says whether the runs were judged at all."""
    known = [run for run in runs if run.stage is not None]
    unjudged = sum(run.stage == Stage.NOT_JUDGED for run in known)
    if not unjudged:
        return "No alerts yet."
    which = (
        "no run could be judged" if unjudged == len(known) else f"{unjudged:,} of {len(known):,} runs are not judged"
    )
    return f"No alerts yet, but {which}: the page of a run says what its log lacks."


def precision(found: Precision) -> list[Component | str]:
    """Return a sentence on how many of the settled predictions came true."""
    if not found.settled:
        return ["No prediction has been settled yet."]
    counted = {"hit": found.hit, "early": found.early, "late": found.late, "false": found.false}
    words = [f"{number} {OUTCOMES[name]}" for name, number in counted.items() if number]
    median = found.lead_steps.median
    lead = "" if median is None else f"; median lead {steps(int(median))}"
    came = found.settled - found.false
    return [html.B(f"{came} of {found.settled} predictions came true"), f" ({', '.join(words)}){lead}"]


class AlertsLive:
    """Live part with all alerts."""

    run_id = None

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._alerts: dict[str, Alert] = {}
        self._runs: dict[str, RunSummary] = {}
        self._precision = Precision()
        self._loaded = False
        self._query = AlertQuery()
        self._projects: list[str] = []

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """Read the whole list on the first call and after a gap; afterwards apply the news."""
        query = parse_alert_query(view.query)
        has_changed = query != self._query
        self._query = query
        if news.resync or not self._loaded:
            alerts, runs, self._precision = await asyncio.gather(
                self._client.alerts(limit=READ), self._client.runs(), self._client.precision()
            )
            self._alerts = {alert.id: alert for alert in alerts}
            self._runs = {run.id: run for run in runs}
            self._loaded = True
        elif not news.alerts and not has_changed and not news.deleted:
            self._runs.update(news.runs)
            return self.idle(view, now)
        elif any(alert.outcome is not None for alert in news.alerts.values()):
            self._precision = await self._client.precision()
        self._runs.update(news.runs)
        self._alerts.update(news.alerts)
        for run_id in news.deleted:
            self._runs.pop(run_id, None)
            self._alerts = {key: alert for key, alert in self._alerts.items() if alert.run_id != run_id}
        shown = await asyncio.to_thread(rows, list(self._alerts.values()), self._runs, now, query)
        updates = [
            Update(component=LIST, props={"children": shown}),
            Update(component=PRECISION, props={"children": precision(self._precision)}),
        ]
        projects = sorted({run.project for run in self._runs.values()})
        if projects != self._projects:
            self._projects = projects
            words = {"": "all", **{name: name for name in projects}}
            updates.append(Update(component=PROJECTS, props={"children": select_options(words)}))
        return Refresh(updates=updates, detail=self._detail())

    def idle(self, view: View, now: float) -> Refresh:
        """Return the header without updates."""
        return Refresh(detail=self._detail())

    def _detail(self) -> str:
        still_open = sum(alert.is_open for alert in self._alerts.values())
        return f"{still_open:,} open"


PAGE: Final = Page(
    name="alerts",
    path="/alerts",
    navigation=NavigationEntry(label="Alerts", order=4),
    layout=layout,
    live=lambda client, _request: AlertsLive(client),
    actions=ALERT_ACTIONS,
)
