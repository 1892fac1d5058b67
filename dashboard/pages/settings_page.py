"""Page of the settings: its declaration and its live part."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from dash.development.base_component import Component

from client_sdk.answers import Channel
from dashboard import ids
from dashboard.client import ApiClient
from dashboard.pages import settings
from dashboard.pages.channel_form import channel_list
from dashboard.pages.settings_actions import SETTINGS_ACTIONS
from dashboard.shell.page import NavigationEntry, Page, PageRequest
from dashboard.stream.feed import News
from dashboard.stream.live_part import Refresh, Update
from dashboard.stream.view import View


class SettingsLive:
    """Live part of the settings, which people change and trainings do not: read once, and again after a gap."""

    run_id = None

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._is_loaded = False
        self._detail = ""

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """Return all settings at first, and the channels again after a gap in the stream."""
        if self._is_loaded and not news.resync:
            return self.idle(view, now)
        client = self._client
        channels, kinds, notifications, runs, tokens = await asyncio.gather(
            client.channels(), client.channel_kinds(), client.notifications(), client.runs(), client.tokens()
        )
        first, self._is_loaded = not self._is_loaded, True
        updates = {ids.CHANNEL_LIST: channel_list(channels, kinds, now)}
        if first:  # later, somebody may be typing into these forms
            updates |= settings.notification_forms(notifications, runs, now)
            updates[ids.TOKEN_LIST] = settings.tokens(tokens, now)
        self._detail = _count(channels)
        shown = [Update(component=name, props={"children": children}) for name, children in updates.items()]
        return Refresh(updates=shown, detail=self._detail)

    def idle(self, view: View, now: float) -> Refresh:
        """Return no updates, because settings do not age."""
        return Refresh(detail=self._detail)


def _count(channels: Sequence[Channel]) -> str:
    on = sum(channel.enabled for channel in channels)
    return "1 channel" if on == 1 else f"{on} channels"


def layout(request: PageRequest) -> Component:
    """Return the settings for administrators of all projects, and a note for everybody else."""
    return settings.layout() if request.viewer.is_administrator else settings.closed()


def live(client: ApiClient, request: PageRequest) -> SettingsLive | None:
    """Return the live part for administrators of all projects."""
    return SettingsLive(client) if request.viewer.is_administrator else None


PAGE: Final = Page(
    name="settings",
    path="/settings",
    navigation=NavigationEntry(label="Settings", order=6, administrators_only=True),
    layout=layout,
    live=live,
    actions=SETTINGS_ACTIONS,
)
