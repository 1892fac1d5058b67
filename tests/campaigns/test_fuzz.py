"""The ingest endpoint under mutated frames, in short; `make fuzz` sends 100,000."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaigns.fuzz.siege import OFTEN, besiege
from tests.support.embedded import embedded

FRAMES = 3_000


@pytest.mark.timeout(240)
def test_mutated_frames_are_answered_and_leave_nothing_behind(tmp_path: Path) -> None:
    with embedded(tmp_path, token_connections_per_second=OFTEN) as server:
        siege = besiege(server, frames=FRAMES, seed=3)
    assert not siege.tally.failures, siege
    assert siege.still_serves
    assert siege.is_withstood, siege
    assert {"malformed", "hello_first", "bad_record", "bad_layout", "ack", "welcome"} <= set(siege.tally.outcomes)
    assert "Traceback" not in (tmp_path / "up.log").read_text(encoding="utf-8")
