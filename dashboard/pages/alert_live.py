"""The moving part of the page of one alert."""

from __future__ import annotations

from dashboard import ids
from dashboard.client import ApiClient, ApiRefusedError
from dashboard.live import News
from dashboard.models import Alert
from dashboard.pages.alert_cards import single
from dashboard.pages.session import Refresh, Update
from dashboard.pages.view import View


class AlertLive:
    """One alert, as one browser has it."""

    def __init__(self, client: ApiClient, alert_id: str) -> None:
        self._client = client
        self._alert_id = alert_id
        self._alert: Alert | None = None
        self._run_name = ""

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """The alert on the first call and after a gap, otherwise what the news brought."""
        if self._alert is None or news.resync:
            try:
                self._alert = await self._client.alert(self._alert_id)
                self._run_name = (await self._client.run(self._alert.run_id)).title
            except ApiRefusedError as error:
                return Refresh(updates=(self._show([str(error)]),), tone="ok", word="live", detail="")
        elif self._alert_id in news.alerts:
            self._alert = news.alerts[self._alert_id]
        else:
            return self.idle(view, now)
        return Refresh(
            updates=(self._show(single(self._alert, self._run_name, now)),), tone="ok", word="live", detail=""
        )

    def idle(self, view: View, now: float) -> Refresh:
        """Only the header."""
        return Refresh(updates=(), tone="ok", word="live", detail="")

    def _show(self, children: object) -> Update:
        return Update(component=ids.ALERT_ONE, props={"children": children})
