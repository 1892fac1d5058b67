"""Scalars of one run in memory, as they were logged one by one, and the records that they make together."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from client_sdk.protocol import Record

POINTS_AT_ONCE = 65_536
SAME_TIME = 1.0  # seconds; scalars of one step that were logged further apart keep their own times


class Points:
    """Scalars in the order in which they were logged, 28 bytes each, because a run may have tens of millions."""

    def __init__(self) -> None:
        self.times = array("d")
        self.steps = array("q")
        self.tags = array("i")
        """Positions of the points' tags in `names`."""
        self.values = array("d")
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def add(self, time: float, step: int, tag: str, value: float) -> None:
        """Append a scalar."""
        number = self._numbers.get(tag)
        if number is None:
            number = self._numbers[tag] = len(self.names)
            self.names.append(tag)
        self.times.append(time)
        self.steps.append(step)
        self.tags.append(number)
        self.values.append(value)

    def records(self) -> Iterator[Record]:
        """Merge the points of one attempt and step into a record.

        A tag that has two values there, and a time that differs by more than `SAME_TIME`, start a further record. A
        training that resumed logs earlier steps again. Tags may count differently, one in steps and one in epochs, so
        only a tag that goes back behind its own last step starts an attempt, and only once for all tags of the restart.
        """
        attempts = self._attempts()
        order = np.lexsort((np.array(self.steps, dtype=np.int64), np.array(attempts, dtype=np.int64)))
        scalars: dict[str, float] = {}
        current, time = (-1, -1), 0.0
        for start in range(0, len(order), POINTS_AT_ONCE):
            for at in order[start : start + POINTS_AT_ONCE].tolist():
                key = (attempts[at], self.steps[at])
                tag = self.names[self.tags[at]]
                differs = tag in scalars and scalars[tag] != self.values[at]
                if key != current or differs or abs(self.times[at] - time) > SAME_TIME:
                    if scalars:
                        yield Record(step=current[1], time=time, scalars=scalars)
                    scalars, current, time = {}, key, self.times[at]
                scalars[tag] = self.values[at]
        if scalars:
            yield Record(step=current[1], time=time, scalars=scalars)

    def _attempts(self) -> array[int]:
        attempts = array("q")
        last: dict[int, tuple[int, int]] = {}
        attempt = 0
        for tag, step in zip(self.tags, self.steps, strict=True):
            before = last.get(tag)
            if before is not None and step < before[1] and before[0] == attempt:
                attempt += 1
            last[tag] = (attempt, step)
            attempts.append(attempt)
        return attempts
