"""The ingest endpoint withstands 3,000 mutated frames; `make fuzz` sends 100,000."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaigns.fuzz.fuzz_server import CONNECTIONS_PER_SECOND, fuzz_server
from tests.support.embedded import embedded

FRAMES = 3_000


@pytest.mark.long
@pytest.mark.timeout(240)
def test_mutated_frames_are_answered_and_leave_nothing_behind(tmp_path: Path) -> None:
    with embedded(tmp_path, token_connections_per_second=CONNECTIONS_PER_SECOND) as server:
        report = fuzz_server(server, frames=FRAMES, seed=3)
    assert not report.tally.failures, report
    assert report.still_serves
    assert report.is_passed, report
    assert {"malformed", "hello_first", "bad_record", "bad_layout", "ack", "welcome"} <= set(report.tally.outcomes)
    assert "Traceback" not in (tmp_path / "up.log").read_text(encoding="utf-8")
