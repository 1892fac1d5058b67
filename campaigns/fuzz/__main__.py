"""``python -m campaigns.fuzz``: mutated frames against `spikewatch up`; exit code 1 where it did not stand up to them.

Prints what came of the frames, and memory, descriptors and threads of each server before and after. Nearly every frame
ends its connection, which is what takes the time, so that several servers are besieged at once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from campaigns.fuzz.siege import OFTEN, Siege, besiege
from tests.support.embedded import embedded


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m campaigns.fuzz")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--servers", type=int, default=2, help="that share the frames, each a process of its own")
    options = parser.parse_args()
    share = -(-options.frames // options.servers)
    with ThreadPoolExecutor(options.servers) as executor:
        seeds = range(options.seed * options.servers, (options.seed + 1) * options.servers)
        found = list(executor.map(lambda seed: _besiege(share, seed), seeds))
    withstood = True
    for siege, said in found:
        print(siege)
        tracebacks = said.count("Traceback")
        print(f"tracebacks in the server's log: {tracebacks}")
        if tracebacks:
            print(said[said.index("Traceback") :][:4_000])
        withstood = withstood and siege.is_withstood and not tracebacks
    return 0 if withstood else 1


def _besiege(frames: int, seed: int) -> tuple[Siege, str]:
    """What came of it, and the log of the server."""
    with (
        tempfile.TemporaryDirectory(prefix="spikewatch-fuzz-") as directory,
        embedded(Path(directory), token_connections_per_second=OFTEN) as server,
    ):
        siege = besiege(server, frames=frames, seed=seed)
        return siege, (Path(directory) / "up.log").read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
