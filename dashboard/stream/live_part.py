"""Live parts: the code of a page that turns news of the server into updates of its components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dashboard.stream.feed import News
from dashboard.stream.view import View


@dataclass(frozen=True, kw_only=True)
class Update:
    """New properties of one component."""

    component: str | dict[str, str]
    """Id of the component."""
    props: dict[str, Any]
    """Values of the properties, keyed by property name."""


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """Updates of a page and the state that its header shows."""

    updates: Sequence[Update] = ()
    """Updates in the order in which the browser applies them."""
    tone: str = "ok"
    """Tone of the state: "ok", "warn", "muted" or "danger"."""
    word: str = "live"
    """State in a word or two."""
    detail: str = ""
    """Numbers after the state, such as the newest step."""
    notice: str = ""
    """Message above the page; empty for none."""


class LivePart(Protocol):
    """The live part of one page in one browser."""

    @property
    def run_id(self) -> str | None:
        """Id of the only run whose news the part receives; None for the news of all runs."""

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """Fetch what the news and the view require and return the updates. Raises `ApiError`."""

    def idle(self, view: View, now: float) -> Refresh:
        """Return the header and the updates of components that change with time alone."""
