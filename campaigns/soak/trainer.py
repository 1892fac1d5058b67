"""The training process of a soak, which logs a fixed number of steps a second until its standard input ends.

    python -m campaigns.soak.trainer RATE

It resembles a small model with all measurements: 20 scalars, 48 layers × 12 statistics, histograms every 50 steps. It
prints the id of its run at the start and its status as JSON at the end.
"""

from __future__ import annotations

import json
import math
import select
import sys
import time

import client_sdk
from client_sdk.vocabulary import STATISTICS
from tests.support.random_blocks import RandomInstrument

LAYERS = 48


def train(rate: float) -> None:
    """Log ``rate`` steps a second until the standard input ends."""
    run = client_sdk.init(project="soak", name="soak")
    run.attach(RandomInstrument(tuple(f"layer{i}" for i in range(LAYERS)), tuple(STATISTICS), histogram_every=50))
    print(run.id, flush=True)
    step, begin = 0, time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, begin + step / rate - time.monotonic()))[0]:
        loss = 2.0 + 0.1 * math.sin(step / 300)
        client_sdk.log({"loss": loss, "lr": 1e-3, **{f"metric_{i}": loss / (i + 1) for i in range(18)}}, step=step)
        step += 1
    client_sdk.finish(timeout=60)
    status = client_sdk.status()
    kept = {"logged": status.logged, "acknowledged": status.acknowledged, "dropped": status.dropped}
    print(json.dumps({**kept, "warnings": dict(status.warnings)}), flush=True)


if __name__ == "__main__":
    train(float(sys.argv[1]))
