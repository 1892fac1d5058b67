"""Who looks at a page: known to everything that happens in a request or websocket of theirs."""

from __future__ import annotations

import hashlib
import hmac
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """Somebody who is logged in. The API is asked with their own credential, and decides what they see."""

    credential: str = field(default="", repr=False)
    """Empty: whoever looks where no login is in front."""
    label: str = ""
    project: str | None = None
    """The one project that they see, None for all."""
    scope: str = "read"

    @property
    def is_administrator(self) -> bool:
        """Whether they may change rules and settings. The API decides; this spares them buttons that do nothing."""
        return not self.credential or (self.scope == "admin" and self.project is None)

    @property
    def csrf(self) -> str:
        """What a request that changes something must repeat: only a page of this login knows it."""
        return hmac.new(self.credential.encode(), b"csrf", hashlib.sha256).hexdigest()


NOBODY = Viewer()

current_viewer: ContextVar[Viewer] = ContextVar("spikewatch_viewer", default=NOBODY)
"""Set by `login.guard` around each request and websocket; tasks and threads started in them inherit it."""
