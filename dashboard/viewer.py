"""The viewer of a page, available to everything that runs in a request or websocket."""

from __future__ import annotations

import hashlib
import hmac
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """A person or program that is logged in. The API decides by the credential what a viewer sees."""

    credential: str = field(default="", repr=False)
    """Credential for the API; empty if the dashboard requires no login."""
    label: str = ""
    """Label of the token that opened the login."""
    project: str | None = None
    """The only project that the viewer sees; None for all projects."""
    scope: str = "read"
    """Scope of the token: "read", "write" or "admin"."""

    @property
    def is_administrator(self) -> bool:
        """Whether the viewer may change rules and settings. The API enforces it; pages hide buttons without effect."""
        return not self.credential or (self.scope == "admin" and self.project is None)

    @property
    def csrf(self) -> str:
        """CSRF token that every request with a change must repeat, known only to pages of this login."""
        return hmac.new(self.credential.encode(), b"csrf", hashlib.sha256).hexdigest()


NOBODY = Viewer()
"""The viewer of a dashboard that requires no login."""

current_viewer: ContextVar[Viewer] = ContextVar("spikewatch_viewer", default=NOBODY)
"""The viewer of the current request or websocket, set by `login.guard` and inherited by tasks and threads."""
