"""Address of the server that a follower sends to, and the search for its token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from server.config import LOOPBACK_HOSTS
from server.errors import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8787"
INGEST_PATH = "/api/v1/ingest"

_SOCKET_SCHEMES = {"http": "ws", "https": "wss"}
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Address:
    """A server and the credential for it. Raises `ConfigurationError` for an address that cannot be one."""

    url: str
    token: str | None = field(default=None, repr=False)
    """Token, or None to read the one that `spikewatch up` keeps on this machine, at each connection."""
    home: Path
    """Directory of the token files."""

    def __post_init__(self) -> None:
        if self._parts.scheme not in _SOCKET_SCHEMES or not self._parts.hostname:
            raise ConfigurationError(f"{self.url!r} is not the URL of a server; expected one like {DEFAULT_URL}")

    @staticmethod
    def resolve(url: str | None, home: Path, environment: Mapping[str, str]) -> Address:
        """Return the address in ``url``, or else in SPIKEWATCH_URL, with the token in SPIKEWATCH_TOKEN."""
        return Address(
            url=url or environment.get("SPIKEWATCH_URL") or DEFAULT_URL,
            token=(environment.get("SPIKEWATCH_TOKEN") or "").strip() or None,
            home=home.expanduser(),
        )

    @property
    def socket_url(self) -> str:
        """Address of the ingest socket."""
        parts = self._parts
        path = parts.path.rstrip("/") + INGEST_PATH
        return urlunsplit((_SOCKET_SCHEMES[parts.scheme], parts.netloc, path, "", ""))

    @property
    def is_local(self) -> bool:
        """Whether the server runs on this machine, where no proxy is between."""
        return self._parts.hostname in LOOPBACK_HOSTS

    def find_token(self) -> str | None:
        """Return the token, or the one that a server on this machine stored for its port, or None."""
        if self.token is not None or not self.is_local:
            return self.token
        port = self._parts.port or _DEFAULT_PORTS[self._parts.scheme]
        try:
            return (self.home / f"server-{port}.token").read_text(encoding="ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    @property
    def _parts(self) -> SplitResult:
        try:
            parts = urlsplit(self.url)
            _ = parts.port  # raises for an invalid port
        except ValueError as error:
            raise ConfigurationError(f"{self.url!r} is not a URL: {error}; expected one like {DEFAULT_URL}") from error
        return parts
