"""Acts of the guard are marks on every panel, and labelled on one."""

from __future__ import annotations

from client_sdk.answers import Event
from dashboard.figures.marks import draw, marks_of
from dashboard.figures.theme import LIGHT, Frame


def test_acts_are_marked_with_what_was_done() -> None:
    events = [
        Event.of(100, "guard", 0, {"action": "raise-second-moment", "is_done": 1, "factor": 1.27, "steps": 1}),
        Event.of(500, "guard", 0, {"action": "skip-batch", "is_done": 0, "factor": None, "steps": 1}),
    ]
    marks = marks_of([], events)
    frame = Frame(palette=LIGHT, step_from=0, step_to=1000)
    shapes, notes = draw(marks, frame, labelled=True)
    assert [shape["x0"] for shape in shapes] == [100, 500]
    assert [note["text"] for note in notes] == ["guard: v × 1.3", "guard would: batch skipped"]
    assert draw(marks, frame, labelled=False)[1] == []
