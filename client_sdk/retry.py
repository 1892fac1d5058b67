"""The schedule of a sender's connections: when it connects again after an error.

Pure, except for the clock. The sender thread uses the schedule; `RetrySchedule.retry_now` may be called from any
thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

from client_sdk.errors import TransportError

REFUSED_DELAY: Final = 60.0  # seconds until a server that refused the client is asked again
WRITER_TAKEN_DELAY: Final = 5.0  # seconds until the server is asked again for a writer that another connection owns


def backoff(first: float = 0.5, longest: float = 15.0) -> Iterator[float]:
    """Yield delays in seconds without end: doubling, with jitter so that clients do not all return at once.

    >>> [0.5 <= delay / limit <= 1.0 for delay, limit in zip(backoff(1.0, 4.0), (1.0, 2.0, 4.0, 4.0))]
    [True, True, True, True]
    """
    delay = first
    while True:
        yield delay * random.uniform(0.5, 1.0)
        delay = min(longest, delay * 2)


class RetrySchedule:
    """Time of the next connection of one sender.

    >>> schedule = RetrySchedule(delays=lambda: iter([1.0, 2.0]), clock=lambda: 0.0)
    >>> schedule.failed(TransportError("unreachable", "no server answers"))
    >>> schedule.remaining
    1.0
    >>> schedule.failed(TransportError("unauthenticated", "the token is unknown", retryable=False))
    >>> schedule.remaining
    60.0
    """

    def __init__(self, delays: Callable[[], Iterator[float]], clock: Callable[[], float]) -> None:
        """``delays`` returns the delays after consecutive retryable errors; ``clock`` is monotonic."""
        self._new_delays = delays
        self._delays = delays()
        self._clock = clock
        self._retry_at = 0.0
        self._may_move_on = True

    @property
    def remaining(self) -> float:
        """Seconds until the next connection; not positive if it is due."""
        return self._retry_at - self._clock()

    def waits_until(self, deadline: float) -> bool:
        """Return whether no connection is due before ``deadline`` (monotonic)."""
        return self._retry_at >= deadline

    def retry_now(self) -> None:
        """Make the next connection due now."""
        self._retry_at = 0.0

    def succeeded(self) -> None:
        """Begin again with the shortest delay, because the server has acknowledged something."""
        self._delays = self._new_delays()
        self._may_move_on = True

    def failed(self, error: TransportError, *, is_isolating: bool = False) -> None:
        """Schedule the next connection after ``error``.

        ``is_isolating`` means that the refused frame will be sent differently, so that no delay is needed.
        """
        if error.code == "going_away" and self._may_move_on:
            delay, self._may_move_on = 0.0, False  # another server takes over the address, or will soon
        elif error.code == "writer_taken":
            delay = WRITER_TAKEN_DELAY
        elif error.retryable:
            delay = next(self._delays)
        else:
            delay = 0.0 if is_isolating else REFUSED_DELAY
        self._retry_at = self._clock() + delay
