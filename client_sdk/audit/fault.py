"""A fault that a rule has found, before the ledger takes it in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

Value = float | int | str | None
SHOWN = 3  # names in a message


class Fault(NamedTuple):
    """Fault with its evidence."""

    check: str
    """Name of the check."""
    message: str
    """Finding as a sentence with numbers."""
    layers: tuple[str, ...] = ()
    """Layers or parameters that it was found at."""
    evidence: Mapping[str, Value] = {}


def listed(names: tuple[str, ...] | list[str]) -> str:
    """Return the first names in words.

    >>> listed(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
