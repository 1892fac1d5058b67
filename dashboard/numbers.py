"""Numbers, steps and durations written for people. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime

DASH = "–"


def compact(value: float | None, digits: int = 3) -> str:
    """A measured number: 2.1e-14, 0.044, 3.12, 48,210; a dash when there is none."""
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
    """A setting, four significant digits at most and none that says nothing: 200, 5,263, 0.01, 3e-4."""
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return compact(value)


def ratio(value: float | None) -> str:
    """A ratio to a limit of 1, two decimals: 1.12; large ones compact, and what rounds to nothing is "< 0.01"."""
    if value is None or not math.isfinite(value) or abs(value) >= 100:
        return compact(value, 2)
    if 0 < abs(value) < 0.005:
        return "< 0.01"
    return f"{value:.2f}"


def count(value: int | None) -> str:
    """A whole number with thousands separated."""
    return DASH if value is None else f"{value:,}"


def steps(value: int | None) -> str:
    """A number of steps, with the word."""
    if value is None:
        return "no steps yet"
    return f"{value:,} step" if value == 1 else f"{value:,} steps"


def rate(value: float | None) -> str:
    """Steps per second, without the unit; empty when there is none."""
    if value is None or not math.isfinite(value) or value <= 0:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A span of time in its largest fitting unit: 0.2 s, 4 min, 3 h, 2 d."""
    seconds = max(seconds, 0.0)
    if seconds < 10:
        return f"{seconds:.1f} s"
    for size, unit in ((60.0, "s"), (60.0, "min"), (24.0, "h")):
        if seconds < 1.5 * size:
            return f"{seconds:.0f} {unit}"
        seconds /= size
    return f"{seconds:.0f} d"


def unix_time(value: float | str | None) -> float | None:
    """A timestamp of the API, Unix seconds or ISO 8601, as Unix seconds. None when absent or unreadable."""
    if value is None or isinstance(value, int | float):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def ellipsis(text: str, width: int) -> str:
    """The text, or its end after an ellipsis: the end of a layer's name tells more than its beginning."""
    return text if len(text) <= width else "…" + text[-(width - 1) :]
