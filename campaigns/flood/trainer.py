"""The training beside the flood: a fixed number of steps a second until its input ends.

    python -m campaigns.flood.trainer RATE

Prints the id of its run, and at the end, as JSON, its status and how long the oldest step ever waited for its
acknowledgement.
"""

from __future__ import annotations

import json
import select
import sys
import time

import client_sdk


def train(rate: float) -> None:
    run = client_sdk.init(project="beside", name="beside the flood")
    print(run.id, flush=True)
    logged_at: list[float] = []
    longest, begin = 0.0, time.monotonic()
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
