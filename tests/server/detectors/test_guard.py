"""The values that a guard logs become events, in whatever order they come, and never a finding."""

from __future__ import annotations

import math

from server.detectors.detector_suite import DetectorSuite
from server.models import Event, Sample


def test_acts_and_advice_become_events() -> None:
    suite = DetectorSuite()
    logged: dict[int, dict[str, float]] = {
        5: {"guard_act": 0.0, "guard_factor": 1.25, "guard_steps": 1.0, "guard_height": 40.0},
        9: {"guard_advice": 1.0, "guard_factor": 0.5, "guard_steps": 10.0},
        12: {"guard_act": 99.0},
        13: {"guard_act": math.nan},
        14: {"guard_act": 5.0, "guard_factor": math.inf, "guard_steps": math.nan},
    }
    events: list[Event] = []
    for step in range(20):
        scalars = {"loss": 1.0, **logged.get(step, {})}
        events += suite.update(Sample(step=step, time=0.0, scalars=scalars)).events
    found = {event.step: event.detail for event in events if event.kind == "guard"}
    assert found == {
        5: {"action": "raise-second-moment", "is_done": 1, "factor": 1.25, "height": 40.0, "steps": 1},
        9: {"action": "reduce-rate", "is_done": 0, "factor": 0.5, "height": None, "steps": 10},
        14: {"action": "skip-batch", "is_done": 1, "factor": None, "height": None, "steps": 1},
    }
