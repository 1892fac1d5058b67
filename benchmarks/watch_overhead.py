"""Cost of the layer statistics: over a fused AdamW step, over a whole step, beside other tools' norms, and in memory.

    python -m benchmarks.watch_overhead [--size 10M] [--rounds 30] [--device cuda] [--threads 1]
        [--tokens 256] [--parts statistics,training,audit,layers]

Everything in a table is measured in one process, alternately and in the same steps of one training, so that a busy
machine slows all of it alike; the figures are medians. `statistics` measures the reading of one step, `training` whole
trainings with `watch` and `log` beside a bare one, `audit` what its checks add to a step, and `layers` the host's work
for 8,000 layers. On CUDA the bandwidth of the statistics is compared with that of a copy.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpt import GPT, SIZES, Size, batch
from benchmarks.peers.norms import PEERS, Peer
from client_sdk.audit import Auditor, Ledger, Surroundings
from client_sdk.config import Settings
from client_sdk.layers import map_layers
from client_sdk.optimizers import Watched, kind_of
from client_sdk.protocol import Layout
from client_sdk.run import Run
from client_sdk.stats import Meter, host_table
from client_sdk.warner import Warner
from client_sdk.watch import watch

MIB: Final = 2.0**20
MANY_LAYERS: Final = 8_000
START: Final = 30  # steps after which the checks of the first steps are over


def timed(device: torch.device, action: Callable[[], Any]) -> float:
    """Return the seconds that ``action`` takes on ``device``, with an idle device before and after.

    On a CPU with one thread it is the processor time of the process, which a busy machine changes little, and which
    includes what threads of the SDK do.
    """
    clock = time.process_time if _is_alone(device) else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def _is_alone(device: torch.device) -> bool:
    return device.type == "cpu" and torch.get_num_threads() == 1


def peak_extra(device: torch.device, action: Callable[[], Any]) -> float | None:
    """Return the MiB that ``action`` needs at most beyond what was in use before; None where that cannot be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _resident("VmRSS")
        action()
        return (_resident("VmHWM") - before) / MIB
    except OSError:
        return None


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@contextmanager
def torch_operations_alone(is_alone: bool) -> Iterator[None]:
    """Keep the compiled kernel of the CPU out of a meter's plan if ``is_alone``."""
    is_available = host_table.is_available
    if is_alone:
        host_table.is_available = lambda: False
    try:
        yield
    finally:
        host_table.is_available = is_available


class Training:
    """A GPT in training on random tokens."""

    def __init__(self, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        self.size, self.device = size, device
        self.model = GPT(size).to(device)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)

    def backward(self) -> None:
        """Compute the gradients of a new batch."""
        x, y = batch(self.size, self.device)
        self.optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = F.cross_entropy(self.model(x).flatten(0, 1), y.flatten())
        loss.backward()

    def meter(self) -> Meter:
        """Return a meter of this training."""
        layers = map_layers(self.model, self.optimizer)
        return Meter(self.optimizer, kind_of(self.optimizer), layers)

    def bytes_read(self) -> int:
        """Return the bytes of gradients, weights and both moments."""
        return sum(4 * parameter.numel() * parameter.element_size() for parameter in self.parameters)


def measure_statistics(size: Size, rounds: int, device: torch.device) -> None:
    """Print the cost of one measurement of all layers beside a fused AdamW step and what other tools compute."""
    training = Training(size, device)
    meters: dict[str, tuple[Meter, bool]] = {}
    if device.type != "cpu":
        meters["Spikewatch"] = (training.meter(), False)
    elif host_table.is_available():
        meters["Spikewatch, numba"] = (training.meter(), False)
    if device.type == "cpu":
        with torch_operations_alone(True):
            meters["Spikewatch, torch alone"] = (training.meter(), True)
    follower = training.meter().period_two
    following = "following a step between them"
    seconds: dict[str, list[float]] = {
        name: [] for name in ("bare step", "fused AdamW step", *meters, following, *PEERS)
    }
    memory: dict[str, float | None] = {}
    for at in range(rounds + 3):
        backward = timed(device, training.backward)
        costs = dict.fromkeys(seconds, 0.0)
        for name, (meter, _) in meters.items():
            costs[name] = timed(device, partial(meter.before_step, training.optimizer))
        step = timed(device, training.optimizer.step)
        costs["fused AdamW step"], costs["bare step"] = step, backward + step
        for name, (meter, is_alone) in meters.items():

            def read(meter: Meter = meter, step: int = at + 1) -> None:
                meter.period_two.follow(training.optimizer, step)
                copy = meter.measure(training.optimizer, histograms=False)
                assert copy is not None

            with torch_operations_alone(is_alone):
                if at == 0:
                    memory[name] = peak_extra(device, read)
                costs[name] += timed(device, read)
        costs[following] = timed(device, partial(follower.follow, training.optimizer, at + 1))
        for name, peer in PEERS.items():

            def norms(peer: Peer = peer) -> None:
                peer(training.parameters, training.optimizer)

            if at == 0:
                memory[name] = peak_extra(device, norms)
            costs[name] = timed(device, norms)
        if at > 2:
            for name, cost in costs.items():
                seconds[name].append(cost)
    count = sum(parameter.numel() for parameter in training.parameters)
    print(f"statistics of {count / 1e6:.1f} M parameters in {len(training.parameters)} tensors; {_where(device)}")
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"  {'':<30} {'ms':>9} {'× AdamW':>9} {'% of a step':>12} {'extra MiB':>10}")
    for name, value in middle.items():
        extra = memory.get(name)
        shown = "" if extra is None else f"{extra:.1f}"
        print(
            f"  {name:<30} {value * 1e3:9.2f} {value / middle['fused AdamW step']:9.2f} "
            f"{100 * value / middle['bare step']:12.1f} {shown:>10}"
        )
    if device.type == "cuda":
        copied = copy_bandwidth(device)
        reached = training.bytes_read() / middle["Spikewatch"]
        print(f"  bandwidth: {reached / 1e9:.0f} GB/s, {100 * reached / copied:.0f} % of a copy's")


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes that a copy on the device reads and writes in a second."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(timed(device, lambda: target.copy_(source)) for _ in range(20))


def measure_training(size: Size, rounds: int, device: torch.device) -> None:
    """Print the time of whole steps with `watch` and `log`, relative to bare training."""
    variants: dict[str, dict[str, Any] | None] = {
        "bare": None,
        "watch(every=1)": {"every": 1},
        "watch()": {},
        "bare, a second time": None,  # shows what differs by chance
    }
    trainings: dict[str, tuple[Training, Run | None]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as directory:
        for name, options in variants.items():
            training = Training(size, device)
            run = None
            if options is not None:
                run = Run(Settings.resolve(project="overhead", mode="offline", directory=Path(directory), environ={}))
                watch(run, training.model, training.optimizer, **options)
            trainings[name] = training, run
        names = list(trainings)
        for at in range(rounds):
            turn = at % len(names)  # each variant follows each other one equally often
            for name in names[turn:] + names[:turn]:
                training, run = trainings[name]

                def step(training: Training = training, run: Run | None = run, at: int = at) -> None:
                    training.backward()
                    training.optimizer.step()
                    if run is not None:
                        run.log({"loss": 1.0}, step=at)

                seconds[name].append(timed(device, step))
        for _, run in trainings.values():
            if run is not None:
                run.finish(5.0)
    print(f"whole steps, medians of the later half of {rounds}; {_where(device)}")
    middle = {name: statistics.median(values[rounds // 2 :]) for name, values in seconds.items()}
    mean = {name: statistics.fmean(values[rounds // 2 :]) for name, values in seconds.items()}
    print(f"  {'':<30} {'ms':>9} {'× bare':>9} {'mean × bare':>12}")
    for name, value in middle.items():
        print(f"  {name:<30} {value * 1e3:9.2f} {value / middle['bare']:9.3f} {mean[name] / mean['bare']:12.3f}")


def measure_audit(size: Size, rounds: int, device: torch.device) -> None:
    """Print what the checks of the audit add to a step beyond the statistics, once those of the start are over."""
    training = Training(size, device)
    optimizer = training.optimizer
    layers = map_layers(training.model, optimizer)
    meter = Meter(optimizer, kind_of(optimizer), layers)
    owned = {id(parameter) for parameter in training.parameters}
    surroundings = Surroundings(owned=lambda: owned, is_sole=lambda: True, config={}, loss=None, is_divided=False)
    auditor = Auditor(
        training.model, Watched(optimizer=optimizer), kind_of(optimizer), layers,
        surroundings=surroundings, ledger=Ledger(), warner=Warner(),
    )  # fmt: skip
    layout = Layout(id=0, layers=layers.names, statistics=meter.statistics, sizes=layers.sizes)
    parts = ("bare step", "checks of a step", "checks of a record", "checks of a measured step")
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for at in range(rounds + START):
        backward = timed(device, training.backward)
        meter.before_step(optimizer)
        before = timed(device, partial(auditor.before_step, optimizer))
        step = timed(device, optimizer.step)
        after = timed(device, partial(auditor.after_step, optimizer))
        copy = meter.measure(optimizer, histograms=False)
        assert copy is not None
        block = copy.measurement().block
        assert block is not None

        def record(at: int = at) -> None:
            auditor.note_log(at, {"loss": 1.0, "lr": 1e-4, "grad_norm": 1.0 + at}, None)
            auditor.note_record(at, {"loss": 1.0 + at, "grad_norm": 2.0 + at, "grad_norm_after_clip": 1.0})
            auditor.ledger.report()

        def measured(at: int = at, block: Any = block) -> None:
            auditor.note_measured(at, block, layout, 1e-4)
            auditor.note_formula(meter.judged, meter.refutation)

        recording = timed(device, record)
        costs = (backward + step, before + after, recording, timed(device, measured))
        if at >= START:
            for name, cost in zip(parts, costs, strict=True):
                seconds[name].append(cost)
    count = sum(parameter.numel() for parameter in training.parameters)
    print(f"audit of {count / 1e6:.1f} M parameters in {len(training.parameters)} tensors; {_where(device)}")
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in middle.items():
        print(f"  {name:<30} {value * 1e6:9.1f} µs {100 * value / middle['bare step']:9.3f} % of a step")
    total = sum(middle[name] for name in parts[1:])
    print(f"  {'all of them':<30} {total * 1e6:9.1f} µs {100 * total / middle['bare step']:9.3f} % of a step")


class _ManyLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList([nn.Parameter(torch.randn(16)) for _ in range(MANY_LAYERS)])


def measure_layers(rounds: int, device: torch.device) -> None:
    """Print the host's time for a model of thousands of small layers, up to the array that ranks would sum."""
    model = _ManyLayers().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    counts = torch.ones(MANY_LAYERS, dtype=torch.bool).numpy()
    seconds: dict[str, list[float]] = {"fused AdamW step": [], "measurement": [], "packing for a sum over ranks": []}
    found: list[Any] = []
    for at in range(rounds + 2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        before = timed(device, partial(meter.before_step, optimizer))
        step = timed(device, optimizer.step)
        found.clear()
        measuring = timed(device, lambda: found.append(meter.measure(optimizer, histograms=False)))
        packing = timed(device, lambda: found[0].contribution(counts))
        if at > 1:
            for name, cost in zip(seconds, (step, before + measuring, packing), strict=True):
                seconds[name].append(cost)
    print(f"host time for {MANY_LAYERS:,} layers of 16 numbers; {_where(device)}")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"  {name:<30} {middle * 1e3:9.2f} ms   {middle / MANY_LAYERS * 1e6:6.2f} µs a layer")


def _where(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "one thread, processor time" if _is_alone(device) else f"threads: {torch.get_num_threads()}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="10M")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, help="tokens of a step, if not those of the size")
    parser.add_argument("--parts", default="statistics,training,audit,layers")
    arguments = parser.parse_args()
    device, size = torch.device(arguments.device), SIZES[arguments.size]
    torch.set_num_threads(arguments.threads)
    if arguments.tokens is not None:
        size = replace(size, tokens=arguments.tokens, tokens_cuda=arguments.tokens)
    parts = arguments.parts.split(",")
    if "statistics" in parts:
        measure_statistics(size, arguments.rounds, device)
    if "training" in parts:
        measure_training(size, arguments.rounds, device)
    if "audit" in parts:
        measure_audit(size, arguments.rounds, device)
    if "layers" in parts:
        measure_layers(max(5, arguments.rounds // 3), device)


if __name__ == "__main__":
    main()
