"""Routing: from the path of an address to a page and the subject in it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from dashboard.shell.page import Page

MISSING = "missing"
"""Name of the route of an address without a page."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """The page that an address names."""

    page: str
    """Name of the page, or `MISSING`."""
    subject: str | None = None
    """Text in place of the parameter of the page's path; None if the path has none."""


class Router:
    """The pages of the dashboard, found by path or by name."""

    def __init__(self, pages: Sequence[Page]) -> None:
        self._pages = {page.name: page for page in pages}
        self._patterns = [(page.name, _segments(page.path)) for page in pages]

    def route(self, path: str | None) -> Route:
        """Return the route of a path, whose segments may be percent-encoded."""
        parts = [unquote(part) for part in _segments(path or "/")]
        for name, pattern in self._patterns:
            if len(pattern) == len(parts) and all(map(_matches, pattern, parts)):
                subject = next(
                    (part for expected, part in zip(pattern, parts, strict=True) if is_parameter(expected)), None
                )
                return Route(page=name, subject=subject)
        return Route(page=MISSING)

    def page(self, name: str) -> Page | None:
        """Return the page of this name, or None if there is none."""
        return self._pages.get(name)


def is_parameter(segment: str) -> bool:
    """Return whether a segment of a page's path stands for any text.

    >>> is_parameter("{run_id}"), is_parameter("runs")
    (True, False)
    """
    return segment.startswith("{")


def has_parameter(page: Page) -> bool:
    """Return whether the path of a page has a parameter, so that there is no single address to link to."""
    return any(map(is_parameter, _segments(page.path)))


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment]


def _matches(expected: str, part: str) -> bool:
    return is_parameter(expected) or expected == part
