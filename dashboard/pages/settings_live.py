"""The settings when they are opened: what there is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from client_sdk.answers import Channel, Notifications, RunSummary
from dashboard import ids
from dashboard.client import ApiClient
from dashboard.pages import settings
from dashboard.stream.feed import News
from dashboard.stream.live_part import Refresh, Update
from dashboard.stream.view import View


class SettingsLive:
    """Settings change by hands, not by training: they are read once, and again after a gap."""

    run_id = None

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._is_loaded = False

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """Everything."""
        if self._is_loaded and not news.resync:
            return self.idle(view, now)
        client = self._client
        channels, notifications, runs, tokens = await asyncio.gather(
            client.channels(), client.notifications(), client.runs(), client.tokens()
        )
        first, self._is_loaded = not self._is_loaded, True
        updates = {ids.CHANNEL_LIST: settings.channels(channels, now)}
        if first:  # forms that somebody may be filling in are left alone
            updates |= forms(notifications, runs, now) | {ids.TOKEN_LIST: settings.tokens(tokens, now)}
        return Refresh(
            updates=[Update(component=name, props={"children": shown}) for name, shown in updates.items()],
            tone="ok",
            word="live",
            detail=_count(channels),
        )

    def idle(self, view: View, now: float) -> Refresh:
        """Nothing ages."""
        return Refresh(updates=(), tone="ok", word="live", detail="")


def forms(found: Notifications, runs: Sequence[RunSummary], now: float) -> dict[str, Any]:
    """By component, what it shows of the settings of all channels."""
    return {
        ids.QUIET_FORM: settings.quiet_form(found),
        ids.DIGEST_FORM: settings.digest_form(found),
        ids.SILENCE_LIST: settings.silences(found, runs, now),
    }


def _count(channels: Sequence[Channel]) -> str:
    on = sum(channel.enabled for channel in channels)
    return "1 channel" if on == 1 else f"{on} channels"
