"""Cost of one call of `log` to the training thread, compared with other loggers that log the same values.

    python -m benchmarks.log_call [--calls N] [--no-peers]

The first table has consecutive calls with 6, 600 and 3,600 values, everything on the host. The other loggers are
installed in their own virtual environment (.venv-peers, created if it is missing) and get a ready dictionary;
Spikewatch gets layers × statistics, as from `watch`, or a dictionary where the table says so.

The second table has 300 layers × 12 statistics and 20 scalars a call, in loops that resemble a training: between two
calls the thread computes or waits, and the caches hold other data. "On the device" means that the statistics arrive 2
ms after the call; the goal printed below is for these rows. The measuring of the statistics is not included. Times are
wall-clock times, which include other programs of the machine; "cpu" is the processor time of the thread itself, and
"own p99" leaves out the calls in which the kernel gave the thread's core to another thread, so that the call and its
wait for the SDK's own threads remain.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_sdk.config import Settings
from client_sdk.measurement import Instrument, Measurement
from client_sdk.protocol import Layout
from client_sdk.run import Run
from client_sdk.vocabulary import STATISTICS

ROOT = Path(__file__).parents[1]
PEERS_HOME = ROOT / ".venv-peers"
PEERS = {"Trackio": "trackio", "W&B offline": "wandb", "TensorBoard": "tensorboard", "MLflow": "mlflow"}
PEER_CALLS = {6: 100, 600: 60, 3600: 25}  # calls by number of values, few where one takes half a second
MLFLOW_SHARE = 0.4  # share of these calls for MLflow
SIZES = (6, 600, 3600)  # values
ARRIVAL = 0.002  # seconds until a copy from the "device" has arrived
GOAL_P50, GOAL_P99 = 30, 150  # microseconds
STEP = 0.005  # seconds of a training step
SCALARS = {f"metric_{i}": i / 7 for i in range(20)}
Timings = NDArray[np.float64]
Log = Callable[[int], None]

SERVER = """
import sys
from tests.support.ingest_server import IngestServer
with IngestServer() as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""


class _Values:
    """A measurement whose copy arrives after a given time."""

    def __init__(self, measurement: Measurement, arrival: float) -> None:
        self._measurement = measurement
        self._arrives_at = time.perf_counter() + arrival if arrival else 0.0

    def ready(self) -> bool:
        return not self._arrives_at or time.perf_counter() >= self._arrives_at

    def result(self) -> Measurement:
        return self._measurement


class _Measured(Instrument):
    """An instrument whose measurements cost nothing."""

    has_stepped = True

    def __init__(self, layers: int, arrival: float = 0.0) -> None:
        names = tuple(f"layers.{i // 6}.part{i % 6}.weight" for i in range(layers))
        self.layout = Layout(id=0, layers=names, statistics=tuple(STATISTICS))
        block = np.random.default_rng(0).random((layers, len(STATISTICS)), np.float32)
        self._measurement = Measurement(block=block)
        self._arrival = arrival

    def measure(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None) -> _Values:
        return _Values(self._measurement, self._arrival)


@contextmanager
def spikewatch(scalars: Mapping[str, float], layers: int, *, arrival: float = 0.0) -> Iterator[Log]:
    """Yield the `log` of an online run, whose server accepts everything in another process."""
    command = [sys.executable, "-c", SERVER]
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        run = Run(Settings.resolve(project="benchmark", directory=directory, url=url, environ={}))
        if layers:
            run.attach(_Measured(layers, arrival))
        yield lambda step: run.log(scalars, step)
        run.finish(60)
        assert not run.status().dropped
        server.communicate("")


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Times of calls, shape (calls,) each."""

    wall: Timings
    """Wall-clock time of each call in microseconds."""
    thread: Timings
    """Processor time of the thread in each call in microseconds."""
    is_disturbed: NDArray[np.bool_]
    """Whether the kernel gave the core to another thread during the call, for another reason than a wait."""


def measure(log: Log, calls: int, between: Callable[[], object] = lambda: None) -> Calls:
    """Measure ``calls`` calls after a tenth as many to warm up, with ``between`` before each of them."""
    wall, thread, disturbed = [], [], []
    for step in range(calls + calls // 10):
        between()
        switches = _involuntary_switches()
        began = time.thread_time()
        begin = time.perf_counter()
        log(step)
        wall.append(time.perf_counter() - begin)
        thread.append(time.thread_time() - began)
        disturbed.append(_involuntary_switches() > switches)
    kept = slice(calls // 10, None)
    return Calls(
        wall=np.array(wall[kept]) * 1e6, thread=np.array(thread[kept]) * 1e6, is_disturbed=np.array(disturbed[kept])
    )


def _involuntary_switches() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def measure_peer(module: str, values: int, calls: int) -> Timings | None:
    """Return the microseconds of each call of another logger, or None if it did not run."""
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [
                _python(PEERS_HOME),
                str(ROOT / "benchmarks/peers/log_call.py"),
                module,
                str(values),
                str(calls),
                directory,
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=directory,
        )
        if done.returncode != 0:
            print(f"{module} did not run: {done.stderr.strip().splitlines()[-1:]}")
            return None
        return np.array(json.loads(done.stdout.splitlines()[-1])) * 1e6


def install_peers() -> bool:
    """Install the other loggers unless they are installed, and return whether they are available."""
    mark = PEERS_HOME / ".complete"
    requirements = ROOT / "benchmarks/peers/requirements.txt"
    if mark.is_file() and mark.read_text() == requirements.read_text():
        return True
    print(f"installing the other loggers in {PEERS_HOME.name}, once …", flush=True)
    venv.create(PEERS_HOME, with_pip=True, clear=True)
    pip = [_python(PEERS_HOME), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "-r", str(requirements)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"the other loggers cannot be installed and are left out: {done.stderr.strip().splitlines()[-1:]}")
        shutil.rmtree(PEERS_HOME)
        return False
    mark.write_text(requirements.read_text())
    return True


def _python(home: Path) -> str:
    return str(home / "bin" / "python")


def compare(calls: int, with_peers: bool) -> None:
    """Print the first table."""
    print(f"{'consecutive calls; microseconds':36}{'p50':>12}{'p99':>12}{'× p50':>10}{'× p99':>10}")
    for size in SIZES:
        scalars = {f"metric_{i}": i / 7 for i in range(6 if size == 6 else 0)}
        with spikewatch(scalars, size // len(STATISTICS) if size > 6 else 0) as log:
            reference = _row(f"{size} values: Spikewatch", measure(log, calls).wall, None)
        if size == 600:
            with spikewatch({f"metric_{i}": i / 7 for i in range(size)}, 0) as log:
                _row("   Spikewatch, as 600 scalars", measure(log, calls).wall, reference)
        for name, module in PEERS.items() if with_peers else ():
            count = PEER_CALLS[size]
            taken = measure_peer(module, size, max(10, int(count * MLFLOW_SHARE)) if module == "mlflow" else count)
            if taken is not None:
                _row(f"   {name}", taken, reference)
    print()


def measure_loops(calls: int) -> None:
    """Print the second table."""
    columns = "".join(f"{name:>10}" for name in ("p50", "p90", "p99", "max", "cpu p50", "cpu p99", "own p99"))
    print(f"{'300 × 12 + 20 scalars; microseconds':48}{columns}")
    worst = []
    for name, between in loops():
        for memory, arrival in (("host", 0.0), ("device", ARRIVAL)):
            if arrival and name.startswith("nothing"):
                continue  # a thousand copies would be under way at once
            with spikewatch(SCALARS, 300, arrival=arrival) as log:
                measured = measure(log, calls, between)
            own = np.percentile(measured.wall[~measured.is_disturbed], 99)
            figures = [*np.percentile(measured.wall, [50, 90, 99, 100]), *np.percentile(measured.thread, [50, 99]), own]
            print(f"{name + ', on the ' + memory:48}" + "".join(f"{figure:10.1f}" for figure in figures), flush=True)
            if arrival:
                worst.append((figures[0], figures[2], own))
    p50, p99, own_p99 = np.max(worst, axis=0)
    print("\non the device, the worst of these rows:")
    print(f"p50 {p50:.1f}, goal {GOAL_P50}: {_verdict(p50, GOAL_P50)}")
    print(f"p99 {p99:.1f}, goal {GOAL_P99}: {_verdict(p99, GOAL_P99)}")
    print(f"own p99 {own_p99:.1f}, goal {GOAL_P99}: {_verdict(own_p99, GOAL_P99)}")


def _verdict(found: float, goal: float) -> str:
    return "met" if found <= goal else "missed"


def loops() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the name and the work of each loop between two calls."""
    yield "nothing (warm)", lambda: None
    yield "5 ms of Python", _compute
    yield "5 ms asleep (cold)", lambda: time.sleep(STEP)
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)
        model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(4)))
        batch = torch.randn(64, 512)

        def train() -> None:
            model(batch).square().mean().backward()

        yield "a step of torch on one core (cold)", train


def _compute() -> None:
    end = time.perf_counter() + STEP
    while time.perf_counter() < end:
        sum(i * i for i in range(100))


def _row(name: str, taken: Timings, reference: tuple[float, float] | None) -> tuple[float, float]:
    p50, p99 = (float(figure) for figure in np.percentile(taken, [50, 99]))
    ratios = "" if reference is None else f"{p50 / reference[0]:10.0f}{p99 / reference[1]:10.0f}"
    print(f"{name:36}{p50:12.1f}{p99:12.1f}{ratios}", flush=True)
    return p50, p99


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000, help="calls of Spikewatch (default: %(default)s)")
    parser.add_argument("--no-peers", action="store_true", help="neither install nor run the other loggers")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    compare(options.calls, not options.no_peers and install_peers())
    measure_loops(min(options.calls, 400))


if __name__ == "__main__":
    main()
