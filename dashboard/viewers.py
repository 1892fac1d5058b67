"""Clients and live feeds of the viewers, one of each per credential."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakValueDictionary

from dashboard.client import ApiClient
from dashboard.config import DashboardConfig
from dashboard.stream.feed import LiveFeed
from dashboard.viewer import Viewer


class Viewers:
    """Access to the API with the rights of each viewer."""

    def __init__(self, config: DashboardConfig, client: ApiClient) -> None:
        """``client``: client whose connections all viewers share; the caller closes it."""
        self._config = config
        self._client = client
        self._feeds: WeakValueDictionary[str, LiveFeed] = WeakValueDictionary()

    def client(self, viewer: Viewer) -> ApiClient:
        """Return a client with the rights of a viewer. It must not be closed."""
        return self._client.acting_for(self._credential(viewer))

    def feed(self, viewer: Viewer) -> LiveFeed:
        """Return the live feed that all pages of a login share; it is released with the last of them."""
        credential = self._credential(viewer)
        feed = self._feeds.get(credential)
        if feed is None:
            feed = self._feeds[credential] = LiveFeed(replace(self._config, token=credential))
        return feed

    def _credential(self, viewer: Viewer) -> str:
        return viewer.credential or self._config.token
