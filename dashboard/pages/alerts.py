"""The page of all alerts, open ones first, then the newest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from dash import html
from dash.development.base_component import Component

from client_sdk.answers import Alert, Precision, RunSummary
from client_sdk.vocabulary import Stage
from dashboard.client import ApiClient
from dashboard.numbers import steps, unix_time
from dashboard.pages.alert_actions import ALERT_ACTIONS
from dashboard.pages.alert_cards import OUTCOMES, alert_row
from dashboard.shell.page import NavigationEntry, Page, PageRequest
from dashboard.stream.feed import News
from dashboard.stream.live_part import Refresh, Update
from dashboard.stream.view import View

SHOWN = 200
LIST: Final = "alert-list"  # id of the component with the alerts
PRECISION: Final = "alert-precision"  # id of the component with the outcomes of predictions


def layout(_request: PageRequest) -> Component:
    """Return the page before its first data."""
    rows = [html.Div(html.Span(className="skeleton"), className="alert-row skeletons") for _ in range(5)]
    return html.Div(
        [
            html.H1("Alerts"),
            html.P("Open ones first, then the newest. Each leads to its run.", className="muted lead"),
            html.P(id=PRECISION, className="precision"),
            html.Div(rows, id=LIST, className="card alert-list"),
        ],
        className="page",
    )


def rows(alerts: Sequence[Alert], runs: Mapping[str, RunSummary], now: float) -> list[Component]:
    """Return the list of alerts. ``runs``: the runs, keyed by run id."""
    ordered = sorted(alerts, key=lambda alert: (alert.is_open, unix_time(alert.opened_at) or 0.0), reverse=True)
    if not ordered:
        return [html.P(_none_words(runs.values()), className="muted none")]
    titles = {run_id: run.title for run_id, run in runs.items()}
    return [alert_row(alert, titles.get(alert.run_id, alert.run_id[:8]), now) for alert in ordered[:SHOWN]]


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

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """Read the whole list on the first call and after a gap; afterwards apply the news."""
        if news.resync or not self._loaded:
            alerts, runs, self._precision = await asyncio.gather(
                self._client.alerts(), self._client.runs(), self._client.precision()
            )
            self._alerts = {alert.id: alert for alert in alerts}
            self._runs = {run.id: run for run in runs}
            self._loaded = True
        elif not news.alerts:
            self._runs.update(news.runs)
            return self.idle(view, now)
        elif any(alert.outcome is not None for alert in news.alerts.values()):
            self._precision = await self._client.precision()
        self._alerts.update(news.alerts)
        shown = await asyncio.to_thread(rows, list(self._alerts.values()), self._runs, now)
        updates = (
            Update(component=LIST, props={"children": shown}),
            Update(component=PRECISION, props={"children": precision(self._precision)}),
        )
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
