"""Lists of ids in statements, padded to few different lengths. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

Id = TypeVar("Id", int, str)


def padded(ids: Collection[Id]) -> list[Id]:
    """Repeat the last id up to the next power of two, for use with ``IN``.

    A list of another length is another statement, and each connection keeps its last hundred or so statements prepared.
    In SQLite a statement takes 17 kB with 100 ids and 100 kB with 500 ids. A page that shows a run requests another
    number of segments each time; within hours, eight connections used tens of megabytes.

    >>> padded([3, 1, 2])
    [3, 1, 2, 2]
    """
    found = list(ids)
    return found + found[-1:] * ((1 << max(len(found) - 1, 0).bit_length()) - len(found)) if found else found
