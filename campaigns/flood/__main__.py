"""``python -m campaigns.flood``: open thousands of connections with one token, alongside a training with another token.

Some connections send nothing, some send a byte a second, some never read an answer, some open a websocket without a
hello, and some are valid except for their number. The exit code is 1 if a step of the training is missing, or if the
server does not release what it held during the flood.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from campaigns.flood.flood_server import flood_server
from tests.support.embedded import embedded


def main() -> int:
    """Run the campaign that the command line describes and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.flood", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--hold", type=float, default=60.0, help="seconds for which all connections stay open")
    parser.add_argument("--rate", type=float, default=20.0, help="steps a second of the training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spikewatch-flood-") as name:
        home = Path(name)
        with embedded(home) as server:
            report = flood_server(server, connections=options.connections, hold=options.hold, rate=options.rate)
            print(report, flush=True)
        log = (home / "up.log").read_text(encoding="utf-8")
    for line in [line for line in log.splitlines() if "WARN" in line or "ERROR" in line][:10]:
        print(f"  the server's log: {line}")
    tracebacks = log.count("Traceback")
    if tracebacks:
        print(log[log.index("Traceback") :][:4_000])
    return 0 if report.is_passed and not tracebacks else 1


if __name__ == "__main__":
    sys.exit(main())
