"""Cache of decoded tiles and segments that is bounded by their size in memory."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any

from cachetools import LRUCache


class ByteCache:
    """Least-recently-used cache whose entries together take at most ``capacity`` bytes.

    Safe to use from any thread. The cache holds the values themselves, not copies: do not change them afterwards.
    """

    def __init__(self, capacity: int) -> None:
        """Create an empty cache.

        ``capacity`` is the maximum of the sizes that callers pass to `put`. A size includes the objects around the
        numbers, which take several times as much memory as the numbers where arrays are short.
        """
        self._items: LRUCache[Hashable, tuple[Any, int]] = LRUCache(capacity, getsizeof=lambda item: item[1])
        self._lock = threading.Lock()  # LRUCache itself is not thread-safe: even a lookup reorders its entries.

    def get(self, key: Hashable) -> Any | None:
        """Return the value and mark it as recently used, or return None where the cache does not hold it."""
        with self._lock:
            item = self._items.get(key)
        return None if item is None else item[0]

    def put(self, key: Hashable, value: Any, nbytes: int) -> None:
        """Store a value of ``nbytes`` bytes, evicting the least recently used ones where it does not fit.

        A value that is larger than the whole cache is not stored; the one it would have replaced is removed.
        """
        with self._lock:
            self._items.pop(key, None)
            if nbytes <= self._items.maxsize:
                self._items[key] = (value, nbytes)

    @property
    def nbytes(self) -> int:
        """Total size of the stored values in bytes."""
        return int(self._items.currsize)
