"""The declaration of the page of settings."""

from __future__ import annotations

from typing import Final

from dash.development.base_component import Component

from dashboard.client import ApiClient
from dashboard.pages import settings
from dashboard.pages.settings_actions import SETTINGS_ACTIONS
from dashboard.pages.settings_live import SettingsLive
from dashboard.shell.page import NavigationEntry, Page, PageRequest


def layout(request: PageRequest) -> Component:
    """Return the settings for administrators of all projects, and a note for everybody else."""
    return settings.layout() if request.viewer.is_administrator else settings.closed()


def live(client: ApiClient, request: PageRequest) -> SettingsLive | None:
    """Return the live part for administrators of all projects."""
    return SettingsLive(client) if request.viewer.is_administrator else None


PAGE: Final = Page(
    name="settings",
    path="/settings",
    navigation=NavigationEntry(label="Settings", order=5, administrators_only=True),
    layout=layout,
    live=live,
    actions=SETTINGS_ACTIONS,
)
