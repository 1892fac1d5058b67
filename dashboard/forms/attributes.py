"""Attributes of HTML whose names are no Python identifiers. Pure."""

from __future__ import annotations

from typing import Any


def aria(**values: str) -> dict[str, Any]:
    """`aria-*` attributes for a component: `aria(label="Runs")`."""
    return {f"aria-{name}": value for name, value in values.items()}


def data(**values: str) -> dict[str, Any]:
    """`data-*` attributes for a component."""
    return {f"data-{name}": value for name, value in values.items()}
