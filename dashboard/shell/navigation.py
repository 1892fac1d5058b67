"""The navigation in the header, built from the declarations of the pages. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import Output, dcc, html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.forms.attributes import aria
from dashboard.shell.page import NavigationEntry, Page
from dashboard.shell.routing import has_parameter
from dashboard.viewer import Viewer


class Navigation:
    """Entries of the header in their order."""

    def __init__(self, pages: Sequence[Page]) -> None:
        entries = [(page, page.navigation) for page in pages if page.navigation is not None]
        self._entries = sorted(entries, key=lambda entry: entry[1].order)
        self._sections = {page.name: page.section or page.name for page in pages}

    def layout(self, viewer: Viewer) -> Component:
        """Return the navigation as a viewer sees it, before the first address is known."""
        return html.Nav([_entry(page, entry, viewer) for page, entry in self._entries], **aria(label="Pages"))

    def outputs(self) -> list[Output]:
        """Return the properties that change with the address, one for each entry."""
        return [
            Output(ids.nav(page.name), "hidden" if has_parameter(page) else "className") for page, _ in self._entries
        ]

    def values(self, name: str) -> list[Any]:
        """Return the values of `outputs` while the page of this name is open."""
        section = self._sections.get(name)
        return [
            page.name != section if has_parameter(page) else "here" if page.name == section else ""
            for page, _ in self._entries
        ]


def _entry(page: Page, entry: NavigationEntry, viewer: Viewer) -> Component:
    if has_parameter(page):
        return html.Span(entry.label, id=ids.nav(page.name), className="here")
    is_hidden = entry.administrators_only and not viewer.is_administrator
    # The hidden entry stays in the document, because the router's callback writes to every entry.
    return dcc.Link(
        entry.label, href=page.path, id=ids.nav(page.name), style={"display": "none"} if is_hidden else None
    )
