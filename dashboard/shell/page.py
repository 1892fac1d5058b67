"""The declaration of a page, from which routing, navigation, live updates and callbacks are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dash import Dash
from dash.development.base_component import Component

from dashboard.client import ApiClient
from dashboard.forms.actions import Handler
from dashboard.stream.live_part import LivePart
from dashboard.viewer import Viewer


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """A viewer's request for a page."""

    viewer: Viewer
    """Viewer who opened the address."""
    subject: str = ""
    """Text in place of the parameter of the page's path; empty if the path has none."""


@dataclass(frozen=True, kw_only=True)
class NavigationEntry:
    """The entry of a page in the header."""

    label: str
    """Text of the entry."""
    order: int
    """Position among the entries, from left to right."""
    administrators_only: bool = False
    """Whether only administrators of all projects see the entry."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page of the dashboard. A module of `dashboard.pages` declares it, `dashboard.pages.registry` lists it."""

    name: str
    """Name of the page, by which the browser refers to it."""
    path: str
    """Path of its address. One segment may be a parameter, such as "/runs/{run_id}"."""
    layout: Callable[[PageRequest], Component]
    """Function that returns the page before its first data."""
    live: Callable[[ApiClient, PageRequest], LivePart | None]
    """Function that creates the live part of the page; None for a viewer who receives no data."""
    navigation: NavigationEntry | None = None
    """Entry in the header. A page with a parameter shows its entry only while it is open."""
    section: str | None = None
    """Name of another page whose entry is highlighted while this page is open."""
    actions: Mapping[str, Handler] = field(default_factory=dict)
    """Handlers of the page's forms and buttons, keyed by verb. Several pages may share a handler."""
    callbacks: Callable[[Dash], None] | None = None
    """Function that registers callbacks that only this page needs."""


def action_handlers(pages: Sequence[Page]) -> dict[str, Handler]:
    """Return the handlers of all pages, keyed by verb. Raises `ValueError` if two handlers share a verb."""
    handlers: dict[str, Handler] = {}
    for page in pages:
        for verb, handler in page.actions.items():
            if handlers.setdefault(verb, handler) is not handler:
                raise ValueError(f"two handlers perform {verb!r}, one on the page {page.name!r}: rename one verb")
    return handlers
