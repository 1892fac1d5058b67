"""Symbols of the field as people write them. Pure."""

from __future__ import annotations

import re
from typing import Any

from dash import html


def symbols(text: str) -> list[Any]:
    """Return a text with subscripts for λ_max, λ_grad and λ_step, and minus signs in powers of ten."""
    parts: list[Any] = []
    unbroken = re.sub(r"(?<=\de)-(?=\d)", "−", text)  # a hyphen would break 2e-12 over two lines
    for index, part in enumerate(re.split(r"(?<=λ)_(max|grad|step)", unbroken)):
        parts.append(html.Sub(part) if index % 2 else part)
    return parts
