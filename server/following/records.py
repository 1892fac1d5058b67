"""Records of a run from the entries of a log. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from client_sdk.protocol import MAX_NAME_CHARS, MAX_SCALARS, Record
from server.imports.entry import Entry
from server.imports.points import SAME_TIME

Key = tuple[str, ...]


def grouped(entries: Iterable[Entry]) -> dict[Key, list[Entry]]:
    """Return the entries of each run, in their order, keyed by the values of its columns."""
    found: dict[Key, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.run, []).append(entry)
    return found


def records_of(entries: Iterable[Entry], time: float, *, merges: bool) -> list[Record]:
    """Return the records of the entries of one run, whose names are final.

    ``time`` is that of entries without one. If it ``merges``, consecutive entries of one step become one record, unless
    they have a scalar in common or are more than `SAME_TIME` seconds apart. Scalars whose names no server accepts are
    left out.

    >>> entries = [Entry(step=1, scalars={"loss": 2.0}), Entry(step=1, scalars={"lr": 0.1})]
    >>> [(record.step, record.time, record.scalars) for record in records_of(entries, 5.0, merges=True)]
    [(1, 5.0, {'loss': 2.0, 'lr': 0.1})]
    """
    found: list[Record] = []
    for entry in entries:
        own = time if entry.time is None or not math.isfinite(entry.time) else entry.time
        scalars = {name: value for name, value in entry.scalars.items() if is_name(name)}
        before = found[-1] if found else None
        if (
            merges
            and before is not None
            and before.step == entry.step
            and abs(before.time - own) <= SAME_TIME
            and not before.scalars.keys() & scalars.keys()
            and len(before.scalars) + len(scalars) <= MAX_SCALARS
        ):
            before.scalars.update(scalars)
            continue
        found += (Record(step=entry.step, time=own, scalars=part) for part in _parts(scalars))
    return found


def is_name(name: str) -> bool:
    """Return whether a server accepts the name of a scalar."""
    return 0 < len(name) <= MAX_NAME_CHARS and "\0" not in name


def _parts(scalars: dict[str, float]) -> Iterator[dict[str, float]]:
    """Yield as many scalars as a record may have."""
    items = list(scalars.items())
    for start in range(0, len(items), MAX_SCALARS):
        yield dict(items[start : start + MAX_SCALARS])
