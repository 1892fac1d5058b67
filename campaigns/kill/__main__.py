"""Kill hundreds of compactions at random statements, on both databases, and check that every record survives each kill.

    python -m campaigns.kill [--kills 150] [--seed 1] [--database sqlite postgres]

Prints a table, and exits with 1 if a record was missing, doubled or unreadable after any of them.
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

from campaigns.kill.killed_compactions import STEPS
from tests.support.postgres import Postgres

ROOT = Path(__file__).parents[2]
KILLS_PER_SEED = 50


@contextmanager
def _database(kind: str) -> Iterator[str]:
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="spikewatch-kill-") as directory:
            yield f"sqlite:///{directory}/killed.sqlite3"
        return
    server = Postgres()
    try:
        yield server.create_database()
    finally:
        server.stop()


def main() -> int:
    """Run the kills that the command line asks for and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.kill", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=150, help="kills on each database")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", nargs="+", choices=("sqlite", "postgres"), default=["sqlite", "postgres"])
    options = parser.parse_args()
    print(
        "| database | seed | kills | states read, record by record | wrong | s |\n|---|---|---|---|---|---|", flush=True
    )
    wrong = 0
    for kind in options.database:
        for number, first in enumerate(range(0, options.kills, KILLS_PER_SEED)):
            seed, kills = options.seed + number, min(KILLS_PER_SEED, options.kills - first)
            with _database(kind) as url:
                began = time.monotonic()
                command = [sys.executable, "-m", "campaigns.kill.killed_compactions", url, str(seed), str(kills)]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            took = time.monotonic() - began
            failed = done.returncode != 0
            wrong += failed
            _, died, _, states, _ = done.stdout.split() if not failed else ("", "?", "", "?", "")
            print(f"| {kind} | {seed} | {died} | {states} × {STEPS} | {failed:d} | {took:.0f} |", flush=True)
            if failed:
                sys.stderr.write(done.stderr[-3_000:])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
