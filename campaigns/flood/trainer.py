"""The training alongside a flood, which logs a fixed number of steps a second until its standard input ends.

    python -m campaigns.flood.trainer RATE

Prints the id of its run once its first step is stored, and at the end, as JSON, its status and the longest time that a
step waited for its acknowledgement.
"""

from __future__ import annotations

import json
import select
import sys
import time

import client_sdk

FIRST_STEP_TIMEOUT = 60.0  # seconds


def train(rate: float) -> None:
    """Log ``rate`` steps a second until the standard input ends."""
    run = client_sdk.init(project="alongside", name="alongside the flood")
    client_sdk.log({"loss": 1.0}, step=0)
    if not client_sdk.flush(FIRST_STEP_TIMEOUT):
        raise TimeoutError(f"the first step was not acknowledged within {FIRST_STEP_TIMEOUT:g} s")
    print(run.id, flush=True)
    logged_at = [time.monotonic()]
    longest, begin = 0.0, logged_at[0]
    while not select.select([sys.stdin], [], [], max(0.0, begin + len(logged_at) / rate - time.monotonic()))[0]:
        client_sdk.log({"loss": 1.0 + len(logged_at)}, step=len(logged_at))
        logged_at.append(time.monotonic())
        acknowledged = client_sdk.status().acknowledged
        if acknowledged < len(logged_at):
            longest = max(longest, time.monotonic() - logged_at[acknowledged])
    client_sdk.finish(timeout=60)
    status = client_sdk.status()
    print(
        json.dumps(
            {
                "logged": status.logged,
                "acknowledged": status.acknowledged,
                "dropped": status.dropped,
                "longest_wait": longest,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    train(float(sys.argv[1]))
