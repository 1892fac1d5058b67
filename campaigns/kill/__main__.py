"""Hundreds of compactions killed at random statements, on both databases: is every record there once after each?

    python -m campaigns.kill.__main__ [--kills 150] [--seed 1] [--database sqlite postgres]

Prints a table; exits with 1 when a record was missing, doubled or unreadable after any of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from campaigns.kill.killing import STEPS
from tests.support.postgres import Postgres

ROOT = Path(__file__).parents[2]
AT_ONCE = 50  # kills of one seed


@contextmanager
def _database(kind: str) -> Iterator[str]:
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="spikewatch-kill-") as place:
            yield f"sqlite:///{place}/killed.sqlite3"
        return
    server = Postgres()
    try:
        yield server.create_database()
    finally:
        server.stop()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=150, help="for each database")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", nargs="+", choices=("sqlite", "postgres"), default=["sqlite", "postgres"])
    options = parser.parse_args()
    _say("| database | seed | kills | states read, record by record | wrong | s |\n|---|---|---|---|---|---|")
    wrong = 0
    for kind in options.database:
        for number, first in enumerate(range(0, options.kills, AT_ONCE)):
            seed, kills = options.seed + number, min(AT_ONCE, options.kills - first)
            with _database(kind) as url:
                began = time.monotonic()
                command = [sys.executable, "-m", "campaigns.kill.killing", url, str(seed), str(kills)]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            took = time.monotonic() - began
            failed = done.returncode != 0
            wrong += failed
            _, died, _, states, _ = done.stdout.split() if not failed else ("", "?", "", "?", "")
            _say(f"| {kind} | {seed} | {died} | {states} × {STEPS} | {failed:d} | {took:.0f} |")
            if failed:
                sys.stderr.write(done.stderr[-3_000:])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
