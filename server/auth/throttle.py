"""Rate limit: a token bucket for each key, refilled at a constant rate. In memory and bounded."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

MAX_KEYS = 10_000


class Throttle:
    """Token bucket (https://en.wikipedia.org/wiki/Token_bucket) for each key: ``burst`` at once, then ``per_second``.

    Keeps the `MAX_KEYS` keys that were used last. A key that was dropped starts again with a full bucket.

    >>> throttle = Throttle(burst=2, per_second=0.5, clock=lambda: 0.0)
    >>> [throttle.take("key") for _ in range(3)]
    [0.0, 0.0, 2.0]
    """

    def __init__(self, burst: float, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        if burst <= 0 or per_second <= 0:
            raise ValueError("burst and per_second must be above zero")
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        """Remaining amount and the time at which it was counted, by key."""

    def __len__(self) -> int:
        """Return the number of keys that have a bucket."""
        return len(self._buckets)

    def take(self, key: Hashable, amount: float = 1.0) -> float:
        """Take ``amount`` and return 0, or take nothing and return the seconds until it is available."""
        left = self._left(key)
        needed = min(amount, self._burst)
        if left < needed:
            return (needed - left) / self._per_second
        self._put(key, left - amount)
        return 0.0

    def owe(self, key: Hashable, amount: float) -> float:
        """Take ``amount`` in any case, and return the seconds until the bucket is out of debt."""
        left = self._left(key) - amount
        self._put(key, left)
        return max(-left / self._per_second, 0.0)

    def give_back(self, key: Hashable, amount: float = 1.0) -> None:
        """Return an amount that was taken but should not count."""
        self._put(key, min(self._left(key) + amount, self._burst))

    def _left(self, key: Hashable) -> float:
        now = self._clock()
        left, counted_at = self._buckets.get(key, (self._burst, now))
        return min(left + (now - counted_at) * self._per_second, self._burst)

    def _put(self, key: Hashable, left: float) -> None:
        self._buckets[key] = (left, self._clock())
        self._buckets.move_to_end(key)
        if len(self._buckets) > MAX_KEYS:
            self._buckets.popitem(last=False)
