"""Delivery keeps its promise under 16 faults; `make chaos` injects 110 over 20,000 steps, on both databases."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from campaigns.chaos.ledger import Entry, expected, line, parse
from campaigns.chaos.report import Verdict, judge
from campaigns.chaos.schedule import KINDS, schedule
from campaigns.chaos.verify import Found, should_be_shown

STEPS = 1_500
FAULTS = 16


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_every_logged_step_is_stored_exactly_once(tmp_path: Path, database: str) -> None:
    command = [sys.executable, "-m", "campaigns.chaos", "--steps", str(STEPS), "--faults", str(FAULTS), "--seed", "7"]
    command += ["--database", database, "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every step exactly once, bit for bit" in done.stdout


def test_a_seed_determines_a_schedule_with_every_kind() -> None:
    faults = schedule(3, 110, KINDS)
    assert faults == schedule(3, 110, KINDS)
    assert faults != schedule(4, 110, KINDS)
    assert len(faults) == 110
    assert set(Counter(fault.kind for fault in faults)) == set(KINDS)


def _entries(*keys: tuple[int, int]) -> list[Entry]:
    return [Entry(incarnation=one, step=step, digest=expected(one, step)) for one, step in keys]


def _found(*keys: tuple[int, int]) -> Found:
    found = Found()
    for key in keys:
        found.add(key, is_exact=True)
    return found


def test_the_ledger_reads_what_it_wrote() -> None:
    (entry,) = _entries((2, 31))
    assert parse(line(entry)) == entry


def _judge(entries: list[Entry], database: Found, api: Found, page: dict[int, int]) -> Verdict:
    truth = should_be_shown(entries, [0, 2])
    return judge(entries, incarnations=2, database=database, api=api, shown=page, should_be_shown=truth)


def test_a_verdict_names_lost_doubled_and_invented_records() -> None:
    entries = _entries((0, 0), (0, 1), (0, 2), (1, 2))
    keys = [entry.key for entry in entries]
    page = {0: 0, 1: 0, 2: 1}
    assert _judge(entries, _found(*keys), _found(*keys), page).is_kept
    kept = _judge(entries, _found(*keys, (0, 3)), _found(*keys), page).is_kept
    assert kept, "a trainer may be killed between log() and its note"
    bad = _judge(entries, _found((0, 0), (0, 2), (0, 2), (1, 2), (1, 9)), _found((0, 0)), {0: 1})
    assert [set(found) for found in (bad.lost, bad.twice, bad.invented)] == [{(0, 1)}, {(0, 2)}, {(1, 9)}]
    assert bad.unexported == {(0, 1), (0, 2), (1, 2)}
    assert bad.misshown == {0, 1, 2}
    altered = _found(*keys)
    altered.wrong.add((0, 1))
    assert _judge(entries, altered, _found(*keys), page).altered == {(0, 1)}
