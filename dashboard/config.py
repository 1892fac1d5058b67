"""Settings of the dashboard. No I/O beyond the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

DEFAULT_API_URL = "http://127.0.0.1:8787"
API_PREFIX = "/api/v1"


@dataclass(frozen=True, kw_only=True)
class DashboardConfig:
    """Address of the server and rate of the pages. Raises `ValueError` if a value is invalid."""

    api_url: str = DEFAULT_API_URL
    """Address of the server, such as "http://127.0.0.1:8787"."""
    token: str = field(default="", repr=False)
    """Credential of viewers if the dashboard requires no login, as in tests; empty otherwise."""
    public_url: str | None = None
    """Address that browsers open, if a proxy hides it; None if they reach the dashboard directly."""
    max_refresh_rate: float = 4.0
    """Upper limit of refreshes per second of one page."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.api_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(
                f"SPIKEWATCH_URL is {self.api_url!r}: it must look like http://host:port, for example {DEFAULT_API_URL}"
            )
        if self.max_refresh_rate <= 0:
            raise ValueError("max_refresh_rate must be above zero")

    @property
    def live_url(self) -> str:
        """Address of the live websocket."""
        return "ws" + self.api_url.rstrip("/").removeprefix("http") + f"{API_PREFIX}/live"

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> DashboardConfig:
        """Return the settings in SPIKEWATCH_URL and SPIKEWATCH_PUBLIC_URL."""
        return DashboardConfig(
            api_url=environment.get("SPIKEWATCH_URL") or DEFAULT_API_URL,
            public_url=environment.get("SPIKEWATCH_PUBLIC_URL") or None,
        )
