"""The API as each viewer may see it: a client and a live feed for each credential, and nothing shared between two."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakValueDictionary

from dashboard.client import ApiClient
from dashboard.config import DashboardConfig
from dashboard.live import LiveFeed
from dashboard.viewer import Viewer


class Viewers:
    def __init__(self, config: DashboardConfig, client: ApiClient) -> None:
        """``client``: whose connections all clients share; it belongs to the caller."""
        self._config = config
        self._client = client
        self._feeds: WeakValueDictionary[str, LiveFeed] = WeakValueDictionary()

    def client(self, viewer: Viewer) -> ApiClient:
        return self._client.acting_for(self._credential(viewer))

    def feed(self, viewer: Viewer) -> LiveFeed:
        """The same one for all pages of a login; gone with the last of them."""
        credential = self._credential(viewer)
        feed = self._feeds.get(credential)
        if feed is None:
            feed = self._feeds[credential] = LiveFeed(replace(self._config, token=credential))
        return feed

    def _credential(self, viewer: Viewer) -> str:
        return viewer.credential or self._config.token
