"""Names of runs by which people can tell them apart. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from client_sdk.answers import RunSummary

ID_CHARS = 6
"""Number of characters of an id that are added to a name."""


def distinct_titles(runs: Iterable[RunSummary]) -> Mapping[str, str]:
    """Return the title of each run keyed by id; runs with the same title have the beginning of their id behind it.

    >>> found = distinct_titles([RunSummary(id="a1b2c3d4", name="net"), RunSummary(id="f5", name="net")])
    >>> list(found.values())
    ['net · a1b2c3', 'net · f5']
    """
    known = list(runs)
    often = Counter(run.title for run in known)
    return {run.id: f"{run.title} · {run.id[:ID_CHARS]}" if often[run.title] > 1 else run.title for run in known}
