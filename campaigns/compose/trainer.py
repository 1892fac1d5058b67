"""The training of the demo's tanh-net, which notes everything that it logs in a ledger.

    python -m campaigns.compose.trainer FD

The ledger is written to the file descriptor FD. It has one line for each call of `log` that returned, ``step loss
logged acknowledged`` with the loss as `float.hex`, and ``end DROPPED`` at the end.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import client_sdk
from server.demo import tanh_net
from server.demo.pace import Pace

FINISH_TIMEOUT = 60.0  # seconds; longer than the outage of the database
RATE = 8  # steps a second, slower than in the demo, so that all faults are repaired during the training


def train(ledger: int) -> None:
    """Train the tanh-net and write the ledger to the file descriptor ``ledger``."""
    log, finish = client_sdk.log, client_sdk.finish
    with open(ledger, "w", buffering=1, encoding="ascii") as lines:

        def noted(metrics: dict[str, Any], *, step: int, **more: Any) -> None:
            loss = metrics["loss"].detach().item()
            log(metrics, step=step, **more)
            status = client_sdk.status()
            lines.write(f"{step} {loss.hex()} {status.logged} {status.acknowledged}\n")

        def finish_slowly() -> None:
            finish(timeout=FINISH_TIMEOUT)

        with (
            patch.object(client_sdk, "log", noted),
            patch.object(client_sdk, "finish", finish_slowly),
            patch.object(tanh_net, "Pace", lambda steps_per_second: Pace(min(RATE, steps_per_second))),
        ):
            tanh_net.main()
        lines.write(f"end {client_sdk.status().dropped}\n")


if __name__ == "__main__":
    train(int(sys.argv[1]))
