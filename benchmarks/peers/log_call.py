"""Timing of another logger's `log` in its own environment; prints the seconds of each call as JSON.

    python log_call.py PEER VALUES CALLS DIRECTORY

Started by `benchmarks/log_call.py`. Does not import Spikewatch.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

Log = Callable[[dict[str, float], int], None]

MLFLOW_BATCH = 1000  # metrics that MLflow accepts in one call


def trackio(directory: Path) -> Log:
    """Return the `log` of Trackio."""
    os.environ["TRACKIO_DIR"] = str(directory)
    module = importlib.import_module("trackio")
    module.init(project="benchmark")
    return lambda values, step: module.log(values, step=step)


def wandb(directory: Path) -> Log:
    """Return the `log` of Weights & Biases in offline mode."""
    module = importlib.import_module("wandb")
    run = module.init(project="benchmark", mode="offline", dir=str(directory), settings={"silent": True})
    return lambda values, step: run.log(values, step=step)


def tensorboard(directory: Path) -> Log:
    """Return a `log` that writes TensorBoard events."""
    event_file = importlib.import_module("tensorboard.summary.writer.event_file_writer")
    event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
    summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
    writer = event_file.EventFileWriter(str(directory))

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():  # as `SummaryWriter.add_scalar` does
            entry = summary(value=[summary.Value(tag=name, simple_value=value)])
            writer.add_event(event(wall_time=time.time(), step=step, summary=entry))

    return log


def mlflow(directory: Path) -> Log:
    """Return a `log` that writes MLflow metrics to SQLite."""
    module = importlib.import_module("mlflow")
    module.set_tracking_uri(f"sqlite:///{directory}/mlflow.sqlite3")
    module.start_run()

    def log(values: dict[str, float], step: int) -> None:
        items = list(values.items())
        for start in range(0, len(items), MLFLOW_BATCH):
            module.log_metrics(dict(items[start : start + MLFLOW_BATCH]), step=step)

    return log


PEERS = {"trackio": trackio, "wandb": wandb, "tensorboard": tensorboard, "mlflow": mlflow}


def main() -> None:
    """Time the calls that the command line asks for."""
    peer, count, calls, directory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    values = {f"layers.{i // 12}.weight/statistic_{i % 12}": i / 7 for i in range(count)}
    taken = []
    with contextlib.redirect_stdout(sys.stderr):
        log = PEERS[peer](directory)
        for step in range(calls + max(2, calls // 10)):
            begin = time.perf_counter()
            log(values, step)
            taken.append(time.perf_counter() - begin)
    print(json.dumps(taken[-calls:]), flush=True)
    os._exit(0)  # some loggers would print, upload or wait at a normal exit


if __name__ == "__main__":
    main()
