"""A process killed at any point of a compaction leaves every record readable, once; `make kill-test` kills hundreds."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "kills"), [("sqlite", 25), ("postgres", 10)])
def test_a_kill_at_any_point_of_a_compaction_loses_and_doubles_nothing(kind: str, kills: int) -> None:
    command = [sys.executable, "-m", "campaigns.kill", "--kills", str(kills), "--seed", "7", "--database", kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {kind} | 7 | {kills} |" in done.stdout
