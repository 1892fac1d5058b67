"""Times as logs write them: numbers in several units, and dates."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
"""Least magnitude of a Unix time in nano-, micro- and milliseconds, and its divisor. 1e11 seconds is the year 5138."""

_DATE = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,](\d{1,6})\d*)?")


def unix_seconds(value: float) -> float:
    """Return a Unix time in seconds. Milli-, micro- and nanoseconds are recognised by their magnitude.

    >>> unix_seconds(1.7e9), unix_seconds(1.7e12), unix_seconds(1.7e15), unix_seconds(1.7e18), unix_seconds(12.5)
    (1700000000.0, 1700000000.0, 1700000000.0, 1700000000.0, 12.5)
    """
    for least, divisor in UNITS:
        if abs(value) >= least and math.isfinite(value):
            return value / divisor
    return value


def parse_date(text: str) -> float | None:
    """Return the Unix time of an ISO date and time, which is UTC unless it names a time zone, or None.

    >>> parse_date("1970-01-01T01:00:00+01:00"), parse_date("yesterday")
    (0.0, None)
    """
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()


def find_date(line: str) -> float | None:
    """Return the Unix time of the first date and time in a line of text, read as UTC, or None.

    >>> find_date("[1970-01-01 00:00:10,500] step 1")
    10.5
    """
    found = _DATE.search(line)
    if found is None:
        return None
    day, clock, fraction = found.groups()
    return parse_date(f"{day}T{clock}.{(fraction or '0').ljust(6, '0')}")
