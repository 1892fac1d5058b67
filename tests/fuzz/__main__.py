"""``python -m tests.fuzz``: mutated frames against `spikewatch up`; exit code 1 where it did not stand up to them.

Prints what came of the frames, and memory, descriptors and threads of the server before and after.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.siege import besiege
from tests.support.embedded import embedded


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spikewatch-fuzz-") as directory, embedded(Path(directory)) as server:
        siege = besiege(server, frames=options.frames, seed=options.seed)
        print(siege)
        said = (Path(directory) / "up.log").read_text(encoding="utf-8")
    tracebacks = said.count("Traceback")
    print(f"tracebacks in the server's log: {tracebacks}")
    if tracebacks:
        print(said[said.index("Traceback") :][:4_000])
    return 0 if siege.is_withstood and not tracebacks else 1


if __name__ == "__main__":
    sys.exit(main())
