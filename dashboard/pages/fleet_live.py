"""The moving part of the fleet page: only rows that changed are sent.

Updates are numbered: a browser that is busy may see the second of two without the first, as a store keeps one value.
fleet.js notices, and asks for everything again.
"""

from __future__ import annotations

import asyncio
from typing import Any

from client_sdk.vocabulary import RunState
from dashboard import ids
from dashboard.client import ApiClient
from dashboard.live import News
from dashboard.models import Alert, RunSummary
from dashboard.pages.fleet import counts, row
from dashboard.pages.session import Refresh, Update
from dashboard.pages.view import View


class FleetLive:
    """All runs, as one browser has them."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._runs: dict[str, RunSummary] = {}
        self._alerts: dict[str, Alert] = {}
        self._sent: dict[str, dict[str, Any]] = {}
        self._number = 0

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """Everything on the first call and after a gap, otherwise what the news brought."""
        if news.resync or not self._runs:
            runs, alerts = await asyncio.gather(self._client.runs(), self._client.alerts())
            self._runs = {run.id: run for run in runs}
            self._alerts = {alert.id: alert for alert in alerts}
            self._sent = {}
        self._runs.update(news.runs)
        self._alerts.update(news.alerts)
        return await asyncio.to_thread(self._changes, now)

    def idle(self, view: View, now: float) -> Refresh:
        """Rows that say since when they are stale grow older."""
        return self._changes(now, only_stale=True)

    def _changes(self, now: float, *, only_stale: bool = False) -> Refresh:
        full = not self._sent
        rows: list[dict[str, Any]] = []
        for run in self._runs.values():
            if only_stale and run.state != RunState.STALE:
                continue  # the others do not age
            drawn = row(run, now, self._alerts)
            if self._sent.get(run.id) != drawn:
                self._sent[run.id] = drawn
                rows.append(drawn)
        updates: list[Update] = []
        if rows or full:
            self._number += 1
            data = {"number": self._number, "full": full, "rows": rows}
            updates.append(Update(component=ids.FLEET, props={"data": data}))
            known = counts(self._runs.values(), self._alerts.values())
            updates.append(Update(component=ids.FLEET_COUNTS, props={"children": known if self._runs else []}))
        total = len(self._runs)
        return Refresh(updates=updates, tone="ok", word="live", detail="1 run" if total == 1 else f"{total:,} runs")
