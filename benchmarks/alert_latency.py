"""Latency of alerts, from `log()` to the POST that a channel receives.

    python -m benchmarks.alert_latency [RUNS]

The benchmark uses a real server on SQLite, the real SDK in this process, and a local receiver. Each run logs calm steps
at 50 a second, then a loss that is NaN; the clock runs from that call of `log()` until the POST has arrived. The time
includes the SDK's batch, the socket, the commit, the detectors, the transaction of the alert and its notification, 0.1
s in which notifications gather for a digest, the claim, and the POST.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import client_sdk
from tests.support.postbox import Postbox
from tests.support.server import running_server

RUNS = 20
CALM_STEPS = 60
STEP_SECONDS = 0.02
GOAL = 0.5  # seconds, for the median


def main(runs: int) -> int:
    """Measure ``runs`` alerts, print the table, and return 0 if the goal is met."""
    with tempfile.TemporaryDirectory() as directory, Postbox() as postbox:
        home = Path(directory)
        with running_server(home, notify_allow_private=True) as server:
            channel = {"name": "latency", "kind": "webhook", "secret": postbox.url("/hook")}
            with server.api() as api:
                api.put("/channels", json={"channels": [channel]}).raise_for_status()
                # Twenty runs in a minute would share a digest.
                api.put("/notifications", json={"digest": {"threshold": 1_000}}).raise_for_status()
            os.environ["SPIKEWATCH_DIR"] = str(home / "spool")
            delays = [_one(number, postbox, server.url, server.token) for number in range(runs)]
    ranked = sorted(delays)
    median, last = statistics.median(ranked), ranked[math.ceil(0.95 * len(ranked)) - 1]
    print("from log() to the POST, in milliseconds")
    print(f"{'runs':>6}{'median':>10}{'95 %':>10}{'worst':>10}")
    print(f"{runs:>6}{1000 * median:>10.0f}{1000 * last:>10.0f}{1000 * ranked[-1]:>10.0f}")
    print(f"goal: a median under {1000 * GOAL:.0f} ms: {'met' if median < GOAL else 'missed'}")
    return 0 if median < GOAL else 1


def _one(number: int, postbox: Postbox, url: str, token: str) -> float:
    """Return the seconds from one step to its notification."""
    run = client_sdk.init(project="latency", name=f"run {number}", url=url, token=token)
    for step in range(CALM_STEPS):
        run.log({"loss": 1.0 + 0.01 * math.sin(step)}, step=step)
        time.sleep(STEP_SECONDS)
    started = time.time()
    run.log({"loss": math.nan}, step=CALM_STEPS)
    arrived = postbox.wait_for(lambda posted: posted.json["run"]["id"] == run.id)
    run.finish()
    return arrived.at - started


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS))
