"""``python -m campaigns.fuzz``: send mutated frames to `spikewatch up`, and exit with 1 if it mishandles any of them.

Prints the answers to the frames, and the memory, descriptors and threads of each server before and after. Nearly every
frame ends its connection, which takes most of the time, so several servers are fuzzed at once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from campaigns.fuzz.fuzz_server import CONNECTIONS_PER_SECOND, FuzzReport, fuzz_server
from tests.support.embedded import embedded


def main() -> int:
    """Run the campaign that the command line describes and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.fuzz")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--servers", type=int, default=2, help="servers that share the frames, each in its own process")
    options = parser.parse_args()
    share = -(-options.frames // options.servers)
    with ThreadPoolExecutor(options.servers) as executor:
        seeds = range(options.seed * options.servers, (options.seed + 1) * options.servers)
        found = list(executor.map(lambda seed: _fuzz(share, seed), seeds))
    is_passed = True
    for report, log in found:
        print(report)
        tracebacks = log.count("Traceback")
        print(f"tracebacks in the server's log: {tracebacks}")
        if tracebacks:
            print(log[log.index("Traceback") :][:4_000])
        is_passed = is_passed and report.is_passed and not tracebacks
    return 0 if is_passed else 1


def _fuzz(frames: int, seed: int) -> tuple[FuzzReport, str]:
    """Fuzz a new server and return the report and the server's log."""
    with (
        tempfile.TemporaryDirectory(prefix="spikewatch-fuzz-") as directory,
        embedded(Path(directory), token_connections_per_second=CONNECTIONS_PER_SECOND) as server,
    ):
        report = fuzz_server(server, frames=frames, seed=seed)
        return report, (Path(directory) / "up.log").read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
