"""HTML attributes whose names are not valid Python identifiers. Pure."""

from __future__ import annotations

from typing import Any


def aria(**values: str) -> dict[str, Any]:
    """Return `aria-*` attributes for a component.

    >>> aria(label="Runs")
    {'aria-label': 'Runs'}
    """
    return {f"aria-{name}": value for name, value in values.items()}


def data(**values: str) -> dict[str, Any]:
    """Return `data-*` attributes for a component.

    >>> data(verb="save-rule")
    {'data-verb': 'save-rule'}
    """
    return {f"data-{name}": value for name, value in values.items()}
