"""How many ids a statement names: few different numbers of them, however many there are. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

Id = TypeVar("Id", int, str)


def padded(ids: Collection[Id]) -> list[Id]:
    """For ``IN``: the ids, the last one again and again up to the next power of two.

    A list of another length is another statement, and each connection keeps its last hundred or so prepared: of 100 ids
    one takes 17 kB in SQLite, of 500 ids 100 kB. A page that looks at a run finds another number of segments each time,
    and in hours eight connections came to tens of megabytes.

    >>> padded([3, 1, 2])
    [3, 1, 2, 2]
    """
    found = list(ids)
    return found + found[-1:] * ((1 << max(len(found) - 1, 0).bit_length()) - len(found)) if found else found
