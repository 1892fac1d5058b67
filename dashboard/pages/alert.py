"""The page of one alert, to which the links in notifications lead.

Opening it changes nothing, because mail programs and chats open links to preview them; only its buttons do.
"""

from __future__ import annotations

from typing import Final

from dash import html
from dash.development.base_component import Component

from client_sdk.answers import Alert
from dashboard.client import ApiClient, ApiRefusedError
from dashboard.pages.alert_actions import ALERT_ACTIONS
from dashboard.pages.alert_cards import single
from dashboard.shell.page import Page, PageRequest
from dashboard.stream.feed import News
from dashboard.stream.live_part import Refresh, Update
from dashboard.stream.view import View

CARD: Final = "alert-one"  # id of the component with the alert


def layout(_request: PageRequest) -> Component:
    """Return the page before its first data."""
    return html.Div(
        [
            html.H1("Alert"),
            html.Div(html.Span(className="skeleton"), id=CARD, className="alerts one"),
        ],
        className="page",
    )


class AlertLive:
    """Live part with one alert."""

    run_id = None

    def __init__(self, client: ApiClient, alert_id: str) -> None:
        self._client = client
        self._alert_id = alert_id
        self._alert: Alert | None = None
        self._run_name = ""

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """Read the alert on the first call and after a gap; afterwards take it from the news."""
        if self._alert is None or news.resync:
            try:
                self._alert = await self._client.alert(self._alert_id)
                self._run_name = (await self._client.run(self._alert.run_id)).title
            except ApiRefusedError as error:
                return Refresh(updates=(self._show([str(error)]),))
        elif self._alert_id in news.alerts:
            self._alert = news.alerts[self._alert_id]
        else:
            return self.idle(view, now)
        return Refresh(updates=(self._show(single(self._alert, self._run_name, now)),))

    def idle(self, view: View, now: float) -> Refresh:
        """Return the header without updates."""
        return Refresh()

    def _show(self, children: object) -> Update:
        return Update(component=CARD, props={"children": children})


PAGE: Final = Page(
    name="alert",
    path="/alerts/{alert_id}",
    section="alerts",
    layout=layout,
    live=lambda client, request: AlertLive(client, request.subject),
    actions=ALERT_ACTIONS,
)
