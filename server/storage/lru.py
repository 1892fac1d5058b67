"""A cache bounded by bytes, the least recently used first to go."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class ByteLru:
    """Safe from any thread. Holds what is passed in: values must not be changed afterwards."""

    def __init__(self, capacity: int) -> None:
        """``capacity``: most bytes held, as the callers count them: with the objects around the numbers, which are
        several times the numbers where arrays are short."""
        self._capacity = capacity
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any | None:
        with self._lock:
            item = self._items.get(key)
            if item is None:
                return None
            self._items.move_to_end(key)
            return item[0]

    def put(self, key: Hashable, value: Any, nbytes: int) -> None:
        """Something greater than the whole cache is not kept."""
        with self._lock:
            before = self._items.pop(key, None)
            if before is not None:
                self._size -= before[1]
            if nbytes > self._capacity:
                return
            self._items[key] = (value, nbytes)
            self._size += nbytes
            while self._size > self._capacity:
                _, (_, freed) = self._items.popitem(last=False)
                self._size -= freed

    @property
    def nbytes(self) -> int:
        return self._size
