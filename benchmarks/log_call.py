"""What one call of `log` costs the training thread, next to other ways to keep the same values, measured in one run.

    python benchmarks/log_call.py [--calls N]

One step is 300 layers × 12 statistics and 20 scalars, already on the host: the statistics themselves are not counted.
The server of the online case is a process of its own. TensorBoard is compared where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_sdk.config import Settings
from client_sdk.measurement import Measurement
from client_sdk.protocol import LAYER_STATISTICS, Layout
from client_sdk.run import Run

LAYERS = tuple(f"layers.{i // 6}.part{i % 6}.weight" for i in range(300))
SCALARS = {f"metric_{i}": i / 7 for i in range(20)}
BLOCK = np.random.default_rng(0).random((len(LAYERS), len(LAYER_STATISTICS)), np.float32)
NAMES = [f"{layer}/{statistic}" for layer in LAYERS for statistic in LAYER_STATISTICS]
PACE = 0.01  # seconds between calls of the paced case, as in a training of 100 steps a second
ROOT = Path(__file__).parents[1]

SERVER = """
import sys; sys.path.insert(0, sys.argv[1])
from tests.support.ingest_server import IngestServer
with IngestServer() as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""

Log = Callable[[int], None]


class _Ready:
    """A measurement whose copy has landed."""

    def __init__(self, measurement: Measurement) -> None:
        self._measurement = measurement

    def ready(self) -> bool:
        return True

    def result(self) -> Measurement:
        return self._measurement


class _Measured:
    """An instrument that has measured already."""

    layout = Layout(id=0, layers=LAYERS, statistics=LAYER_STATISTICS)

    def measure(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None) -> _Ready:
        return _Ready(Measurement(block=BLOCK))


@contextmanager
def spikewatch(directory: Path, **arguments: Any) -> Iterator[Log]:
    """A run with the whole block."""
    run = Run(Settings.resolve(project="benchmark", directory=directory, environ={}, **arguments))
    run.attach(_Measured())
    yield lambda step: run.log(SCALARS, step)
    run.finish(60)
    assert not run.status().dropped


@contextmanager
def spikewatch_online(directory: Path) -> Iterator[Log]:
    """The same with a server that takes everything."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        with spikewatch(directory, url=url) as log:
            yield log
        server.communicate("")


@contextmanager
def json_lines(directory: Path) -> Iterator[Log]:
    """The least that a home-made logger does: one line of JSON a step."""
    with (directory / "log.jsonl").open("w") as file:

        def log(step: int) -> None:
            file.write(json.dumps({**SCALARS, **dict(zip(NAMES, BLOCK.ravel().tolist(), strict=True)), "step": step}))
            file.write("\n")

        yield log


@contextmanager
def tensorboard(directory: Path) -> Iterator[Log]:
    """TensorBoard's event writer, one scalar a value."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(directory))

    def log(step: int) -> None:
        for name, value in SCALARS.items():
            writer.add_scalar(name, value, step)
        for name, value in zip(NAMES, BLOCK.ravel().tolist(), strict=True):
            writer.add_scalar(name, value, step)

    yield log
    writer.close()


def measure(log: Log, calls: int, pace: float) -> NDArray[np.float64]:
    """Microseconds of each call, after a tenth of them to warm up."""
    taken = []
    for step in range(calls + calls // 10):
        begin = time.perf_counter()
        log(step)
        taken.append(time.perf_counter() - begin)
        if pace:
            time.sleep(pace)
    return np.array(taken[calls // 10 :]) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    calls = parser.parse_args().calls
    cases: list[tuple[str, Callable[[Path], Any], int, float]] = [
        ("spikewatch, offline", lambda directory: spikewatch(directory, mode="offline"), calls, 0.0),
        ("spikewatch, online", spikewatch_online, calls, 0.0),
        ("spikewatch, online, 100 steps/s", spikewatch_online, min(calls, 500), PACE),
        ("a line of JSON", json_lines, max(20, calls // 20), 0.0),
    ]
    if importlib.util.find_spec("tensorboard") is not None:
        cases.append(("TensorBoard event writer", tensorboard, max(20, calls // 100), 0.0))
    else:
        print("TensorBoard is not installed; it is left out")
    print(f"{len(LAYERS)} layers × {len(LAYER_STATISTICS)} statistics + {len(SCALARS)} scalars a call, microseconds")
    print(f"{'':34}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}{'× p50 of the first':>22}")
    reference = 0.0
    for name, case, count, pace in cases:
        with tempfile.TemporaryDirectory() as place, case(Path(place)) as log:
            taken = measure(log, count, pace)
        p50, p90, p99, most = np.percentile(taken, [50, 90, 99, 100])
        reference = reference or p50
        print(f"{name:34}{p50:10.1f}{p90:10.1f}{p99:10.1f}{most:10.1f}{p50 / reference:22.1f}")


if __name__ == "__main__":
    main()
