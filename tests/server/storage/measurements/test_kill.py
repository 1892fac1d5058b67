"""A server killed at any point of a compaction leaves every record readable exactly once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.postgres import Postgres

ROOT = Path(__file__).parents[4]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "kills"), [("sqlite", 25), ("postgres", 10)])
def test_a_kill_at_any_point_of_a_compaction_loses_and_doubles_nothing(
    kind: str, kills: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'killed.sqlite3'}"
    if kind == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.create_database()
    command = [sys.executable, "-m", "campaigns.kill.killing", url, "7", str(kills)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout.startswith(f"killed {kills} times; ")
