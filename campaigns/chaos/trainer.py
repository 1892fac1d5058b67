"""One incarnation of the training of a chaos campaign, which logs until its standard input ends.

    python -m campaigns.chaos.trainer RUN INCARNATION FIRST_STEP RATE CLOCK

Standard output is the ledger (see `campaigns.chaos.ledger`) with two additional kinds of lines: "s LOGGED ACKNOWLEDGED"
every few steps, and "end DROPPED" after `finish`.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

import client_sdk
from campaigns.chaos.clock import JumpingClock
from campaigns.chaos.ledger import Entry, digest, instrument, line, metrics

STATUS_EVERY = 10  # steps
FINISH_TIMEOUT = 30.0  # seconds


def train(run_id: str, incarnation: int, first_step: int, rate: float) -> None:
    """Log ``rate`` steps a second from ``first_step`` on, and note each of them in the ledger."""
    run = client_sdk.init(project="chaos", name="chaos", run_id=run_id)
    measured = instrument(incarnation)
    run.attach(measured)
    step, begin = first_step, time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, begin + (step - first_step) / rate - time.monotonic()))[0]:
        values = metrics(incarnation, step)
        entry = Entry(incarnation=incarnation, step=step, digest=digest(step, values, measured.block(step)))
        client_sdk.log(values, step=step)
        os.write(1, line(entry))
        if step % STATUS_EVERY == 0:
            status = client_sdk.status()
            os.write(1, f"s {status.logged} {status.acknowledged}\n".encode("ascii"))
        step += 1
    client_sdk.finish(timeout=FINISH_TIMEOUT)
    os.write(1, f"end {client_sdk.status().dropped}\n".encode("ascii"))


if __name__ == "__main__":
    time.time = JumpingClock(Path(sys.argv[5]))
    train(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
