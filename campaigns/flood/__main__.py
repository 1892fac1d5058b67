"""``python -m campaigns.flood``: thousands of connections of one token, beside a training of another.

Some connections say nothing, some send a byte a second, some read no answer, some open sockets and say no hello, and
some are good but for their number. Exit code 1 where a step of the training is missing, or where the server does not
come back to what it held before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from campaigns.flood.trial import attempt
from tests.support.embedded import embedded


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m campaigns.flood", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--hold", type=float, default=60.0, help="seconds that the flood stays when all have come")
    parser.add_argument("--rate", type=float, default=20.0, help="steps a second of the training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spikewatch-flood-") as name:
        home = Path(name)
        with embedded(home) as server:
            trial = attempt(server, connections=options.connections, hold=options.hold, rate=options.rate)
            print(trial, flush=True)
        said = (home / "up.log").read_text(encoding="utf-8")
    for line in [line for line in said.splitlines() if "WARN" in line or "ERROR" in line][:10]:
        print(f"  the server's log: {line}")
    tracebacks = said.count("Traceback")
    if tracebacks:
        print(said[said.index("Traceback") :][:4_000])
    return 0 if trial.is_withstood and not tracebacks else 1


if __name__ == "__main__":
    sys.exit(main())
