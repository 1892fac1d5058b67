"""Timeline of a spike in the demo."""

from __future__ import annotations

from typing import Any

from server.demo.timeline import timeline


def test_a_timeline_is_in_the_order_of_time() -> None:
    alert: dict[str, Any] = {
        "opened_at": 10.0, "closed_at": 20.0, "step": 5, "kind": "spike-predicted", "title": "Spike predicted",
        "outcome": {"result": "hit", "step": 9, "lead": 4},
    }  # fmt: skip
    sent = {"channel": "ml", "change": "opened", "state": "sent", "created_at": 10.1, "done_at": 10.3}
    came = {"channel": "ml", "change": "confirmed", "state": "pending", "created_at": 20.1, "done_at": None}
    assert timeline([]) == []
    assert timeline([(alert, [came, sent])])[2:] == [
        '     0.000  step 5 logged, where "spike-predicted" opens',
        "     0.100  opened: stored, with a message for ml",
        "     0.300  message sent: Spike predicted (200 ms after it was stored)",
        "    10.000  step 9 logged: the spike has come",
        "    10.100  confirmed: stored, with a message for ml",
    ]
