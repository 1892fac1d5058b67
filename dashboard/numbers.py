"""Numbers, steps and durations as text for people. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime

DASH = "–"


def compact(value: float | None, digits: int = 3) -> str:
    """Return a measured number in few digits, or a dash for None.

    >>> [compact(value) for value in (2.1e-14, 3.1184, 48210.0, None)]
    ['2.1e-14', '3.12', '48,210', '–']
    """
    if value is None:
        return DASH
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    magnitude = abs(value)
    if magnitude == 0:
        return "0"
    if magnitude < 1e-3 or magnitude >= 1e6:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if magnitude >= 1000:
        return f"{value:,.0f}"
    decimals = max(digits - 1 - math.floor(math.log10(magnitude)), 0)
    return f"{value:.{decimals}f}"


def exact(value: float) -> str:
    """Return a setting in at most four significant digits, without trailing zeros.

    >>> [exact(value) for value in (200.0, 5263.2, 0.01)]
    ['200', '5,263', '0.01']
    """
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return compact(value)


def ratio(value: float | None) -> str:
    """Return a ratio with two decimals; large ratios are compact, and small ones that would round to 0 are "< 0.01".

    >>> [ratio(value) for value in (1.118, 0.004, 431.0)]
    ['1.12', '< 0.01', '431']
    """
    if value is None or not math.isfinite(value) or abs(value) >= 100:
        return compact(value, 2)
    if 0 < abs(value) < 0.005:
        return "< 0.01"
    return f"{value:.2f}"


def count(value: int | None) -> str:
    """Return a whole number with separated thousands, or a dash for None."""
    return DASH if value is None else f"{value:,}"


def steps(value: int | None) -> str:
    """Return a number of steps with its unit, such as "48,210 steps"."""
    if value is None:
        return "no steps yet"
    return f"{value:,} step" if value == 1 else f"{value:,} steps"


def rate(value: float | None) -> str:
    """Return steps per second without the unit, or "" if there is no positive rate."""
    if value is None or not math.isfinite(value) or value <= 0:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Return a duration in its largest fitting unit.

    >>> [duration(seconds) for seconds in (0.21, 250, 10800)]
    ['0.2 s', '4 min', '3 h']
    """
    seconds = max(seconds, 0.0)
    if seconds < 10:
        return f"{seconds:.1f} s"
    for size, unit in ((60.0, "s"), (60.0, "min"), (24.0, "h")):
        if seconds < 1.5 * size:
            return f"{seconds:.0f} {unit}"
        seconds /= size
    return f"{seconds:.0f} d"


def unix_time(value: float | str | None) -> float | None:
    """Return a timestamp of the API, in Unix seconds or ISO 8601, as Unix seconds; None if absent or unreadable."""
    if value is None or isinstance(value, int | float):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def ellipsis(text: str, width: int) -> str:
    """Return the text in at most ``width`` characters. A cut text keeps its end, which distinguishes layers best.

    >>> ellipsis("blocks.10.mlp.down.weight", 12)
    '…down.weight'
    """
    return text if len(text) <= width else "…" + text[-(width - 1) :]
