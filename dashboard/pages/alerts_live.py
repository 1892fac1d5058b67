"""The moving part of the page of all alerts."""

from __future__ import annotations

import asyncio

from dashboard import ids
from dashboard.client import ApiClient
from dashboard.live import News
from dashboard.models import Alert, Precision
from dashboard.pages.alerts import precision, rows
from dashboard.pages.session import Refresh, Update
from dashboard.pages.view import View


class AlertsLive:
    """All alerts, as one browser has them."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._alerts: dict[str, Alert] = {}
        self._names: dict[str, str] = {}
        self._precision = Precision()
        self._loaded = False

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """The whole list on the first call and after a gap, otherwise what the news brought."""
        if news.resync or not self._loaded:
            alerts, runs, self._precision = await asyncio.gather(
                self._client.alerts(), self._client.runs(), self._client.precision()
            )
            self._alerts = {alert.id: alert for alert in alerts}
            self._names = {run.id: run.title for run in runs}
            self._loaded = True
        elif not news.alerts:
            self._names.update({run.id: run.title for run in news.runs.values()})
            return self.idle(view, now)
        elif any(alert.outcome is not None for alert in news.alerts.values()):
            self._precision = await self._client.precision()
        self._alerts.update(news.alerts)
        shown = await asyncio.to_thread(rows, list(self._alerts.values()), self._names, now)
        updates = (
            Update(component=ids.ALERT_LIST, props={"children": shown}),
            Update(component=ids.ALERT_PRECISION, props={"children": precision(self._precision)}),
        )
        return Refresh(updates=updates, tone="ok", word="live", detail=self._detail())

    def idle(self, view: View, now: float) -> Refresh:
        """Only the header."""
        return Refresh(updates=(), tone="ok", word="live", detail=self._detail())

    def _detail(self) -> str:
        still_open = sum(alert.is_open for alert in self._alerts.values())
        return f"{still_open:,} open"
