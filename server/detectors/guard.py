"""Acts and advice of the guard of a training, which it logs as scalars, as events.

Rule: a record with `guard_act` or `guard_advice` is one event. Nothing is judged, and there is no finding.

>>> detector = GuardDetector()
>>> scalars = {"guard_act": 0.0, "guard_factor": 1.3, "guard_steps": 1.0}
>>> detector.update(Reading(step=7), Context(scalars=scalars)).detail["action"]
'raise-second-moment'
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from client_sdk.vocabulary import GUARD_ACTIONS
from server.detectors.context import Context
from server.detectors.signals import Reading
from server.models import Event, EventKind, Finding


class GuardDetector(msgspec.Struct):
    """Detector of acts of the guard. It has no state."""

    def update(self, reading: Reading, context: Context) -> Event | None:
        """Return the event of a record in which the guard says something."""
        scalars = context.scalars
        is_done = "guard_act" in scalars
        position = scalars.get("guard_act", scalars.get("guard_advice"))
        if position is None or position not in range(len(GUARD_ACTIONS)):
            return None
        steps = _finite(scalars, "guard_steps")
        return Event(
            step=reading.step,
            kind=EventKind.GUARD,
            detail={
                "action": GUARD_ACTIONS[int(position)],
                "is_done": int(is_done),
                "factor": _finite(scalars, "guard_factor"),
                "height": _finite(scalars, "guard_height"),
                "steps": 1 if steps is None else max(1, int(min(steps, 1e6))),
            },
        )

    def finding(self, reading: Reading, context: Context) -> Finding | None:
        """Return nothing: an act is no alert."""
        del reading, context
        return None


def _finite(scalars: Mapping[str, float], name: str) -> float | None:
    value = scalars.get(name, math.nan)
    return value if math.isfinite(value) else None
