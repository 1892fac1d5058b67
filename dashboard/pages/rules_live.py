"""The page of rules when it is opened: what there is."""

from __future__ import annotations

from dashboard import ids
from dashboard.client import ApiClient
from dashboard.live import News
from dashboard.pages.rules import items
from dashboard.pages.session import Refresh, Update
from dashboard.pages.view import View


class RulesLive:
    """Rules change by hands, not by training: they are read once, and again after a gap."""

    def __init__(self, client: ApiClient, *, may_change: bool) -> None:
        self._client = client
        self._may_change = may_change
        self._count: int | None = None

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """The list."""
        if self._count is not None and not news.resync:
            return self.idle(view, now)
        rules = await self._client.rules()
        self._count = len(rules)
        update = Update(component=ids.RULE_LIST, props={"children": items(rules, may_change=self._may_change)})
        return Refresh(updates=(update,), tone="ok", word="live", detail="")

    def idle(self, view: View, now: float) -> Refresh:
        """Nothing ages."""
        return Refresh(updates=(), tone="ok", word="live", detail="")
