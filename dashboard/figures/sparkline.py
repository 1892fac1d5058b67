"""The sparkline: the loss of a whole run as an SVG path. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

WIDTH = 128
HEIGHT = 26
PAD = 2


def sparkline(values: Sequence[float | None]) -> str:
    """Return path data (`d`) in a box of `WIDTH` × `HEIGHT` pixels, or "" for fewer than two finite values.

    The vertical scale is logarithmic if the values span more than two decades. Non-finite values break the line.

    >>> sparkline([1.0, 3.0])
    'M2.0 24.0L126.0 2.0'
    """
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if len(finite) < 2:
        return ""
    logarithmic = min(finite) > 0 and max(finite) / min(finite) > 100
    heights = [
        (math.log10(value) if logarithmic else value) if value is not None and math.isfinite(value) else None
        for value in values
    ]
    known = [height for height in heights if height is not None]
    low, high = min(known), max(known)
    span = high - low or 1.0
    across = (WIDTH - 2 * PAD) / max(len(values) - 1, 1)
    path: list[str] = []
    pen = "M"
    for index, height in enumerate(heights):
        if height is None:
            pen = "M"
            continue
        x = PAD + index * across
        y = HEIGHT - PAD - (height - low) / span * (HEIGHT - 2 * PAD)
        path.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(path)
