"""Cost and error of curvature: products for λ_max, and time and memory of each method, beside other libraries.

    python -m benchmarks.curvature_cost [--models 20] [--parts products,methods]

`products` counts the Hessian-vector products until λ_max is within 1 % of the value in float64, at one point of a
training (cold) and after a further step (warm), beside PyHessian, curvlinops and SciPy's eigsh for the same eigenvalue.
`methods` reads one network's λ_max by all of these, in training steps, in memory beyond that of the training and with
the error of each, and measures the critical sharpness and λ_step of the same step. PyHessian and curvlinops come with
`pip install -e '.[bench]'`. `benchmarks.curvature_budget` measures what curvature takes of whole trainings.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import nn

from benchmarks.curvature_peers import (
    Found,
    Operator,
    by_curvlinops,
    by_eigsh,
    by_pyhessian,
    by_spikewatch,
    by_tuned_eigsh,
)
from benchmarks.random_trainings import Training, random_training
from benchmarks.watch_overhead import MIB, peak_extra
from client_sdk.curvature.critical_sharpness import CriticalSharpness
from client_sdk.curvature.hessian import DifferenceHessian, ExactHessian
from client_sdk.curvature.sandbox import Sandbox
from client_sdk.curvature.step_probe import StepSnapshot, step_curvature
from client_sdk.curvature.tracking import Tracking

EXACT: Final = 0.01  # relative error at which products are counted
Product = type[ExactHessian | DifferenceHessian]
REPEATS: Final = 3  # measurements whose median is the time


# -- products --


def tracked_products(tracking: Tracking, operator: Operator, truth: float, *, most: int = 40) -> Found:
    """Return the reading of λ_max by `Tracking` that is the first within `EXACT`."""
    for count in range(1, most + 1):
        aim = tracking.plan()
        vector = tracking.vector(aim, operator.root, operator.root * operator.gradient)
        values = {k: float(v) for k, v in tracking.take(aim, vector, operator.product(vector)).items()}
        tracking.observe(aim, values)
        if "lambda_max" in values and abs(values["lambda_max"] / truth - 1) <= EXACT:
            return Found(value=values["lambda_max"], products=count)
    return Found(value=math.nan, products=most)


def measure_products(models: int) -> None:
    """Print the products until λ_max is within 1 %, cold and warm, and those of other libraries on the raw Hessian."""
    rows: dict[str, list[Found | None]] = {}
    truths: dict[str, list[float]] = {}

    def add(name: str, found: Found | None, truth: float) -> None:
        rows.setdefault(name, []).append(found)
        truths.setdefault(name, []).append(truth)

    for seed in range(models):
        for kind, sgd in (("Adam", False), ("SGD", True)):
            training = random_training(seed, sgd=sgd)
            for _ in range(100):
                training.step()
            operator = Operator(training)
            truth, tracking = operator.truth(), Tracking()
            if not truth > 0:
                continue
            add(f"Spikewatch, cold, {kind}", tracked_products(tracking, operator, truth), truth)
            tuned = by_tuned_eigsh(operator, truth, EXACT)
            add(f"eigsh with the best of 16 settings, {kind}", tuned and tuned[0], truth)
            if sgd:
                add("PyHessian, SGD", by_pyhessian(training), truth)
                add("curvlinops and eigsh, SGD", by_curvlinops(training, EXACT), truth)
            for _ in range(5):
                training.step()
                after = Operator(training)
                if (truth := after.truth()) > 0:
                    add(f"Spikewatch, warm, {kind}", tracked_products(tracking, after, truth), truth)
    print(f"products until λ_max is within {EXACT:.0%}, {models} random models; goals: cold 6, warm 2\n")
    print("| | median | 90 % | most | within 6 | within 2 | not within 1 % |")
    print("|---|---|---|---|---|---|---|")
    for name, all_found in rows.items():
        counts = [found.products for found in all_found if found is not None and found.products]
        if not counts:
            print(f"| {name} | not installed | | | | | |")
            continue
        missed = sum(
            found is None or not found.error(truth) <= EXACT
            for found, truth in zip(all_found, truths[name], strict=True)
        )
        print(
            f"| {name} | {median(counts):.0f} | {np.quantile(counts, 0.9):.0f} | {max(counts)} | "
            f"{sum(count <= 6 for count in counts)} of {len(counts)} | "
            f"{sum(count <= 2 for count in counts)} of {len(counts)} | {missed} |"
        )


# -- methods --


def measure_methods() -> None:
    """Print what λ_max of one network takes by each method and library, and what the two readings of a step take."""
    training = _network()
    steps = [_seconds(training.step) for _ in range(30)]
    step, weights = median(steps), sum(p.numel() for p in training.model.parameters())
    operator = Operator(_in_float64(training))
    truth = operator.truth()
    rows = len(training.inputs)
    print(f"a perceptron of {weights / 1e6:.2f} million parameters with {rows} rows and SGD, λ_max {truth:.4g}\n")
    print("| | products or losses | × a training step | memory × the parameters | relative error |")
    print("|---|---|---|---|---|")

    def show(name: str, find: Callable[[], Found | None]) -> Found | None:
        """Print one row; ``find`` may be called several times."""
        found = find()
        if found is None:
            print(f"| {name} | not installed | | | |", flush=True)
            return None
        seconds = median(_seconds(find) for _ in range(REPEATS))
        print(
            f"| {name} | {found.products} | {seconds / step:.1f} | {_memory(find) / weights / 4:.1f} | "
            f"{found.error(truth):.1e} |",
            flush=True,
        )
        return found

    methods: tuple[tuple[str, Product], ...] = (
        ("double backward", ExactHessian), ("finite differences", DifferenceHessian),
    )  # fmt: skip
    for name, method in methods:
        latest = [Tracking()]

        def find(*, is_cold: bool, method: Product = method, latest: list[Tracking] = latest) -> Found:
            latest[0] = Tracking() if is_cold else latest[0]
            return by_spikewatch(training, latest[0], method)

        show(f"Spikewatch, {name}, cold", partial(find, is_cold=True))
        show(f"Spikewatch, {name}, warm", partial(find, is_cold=False))
    in_float32 = Operator(training)
    tuned = by_tuned_eigsh(in_float32, truth, EXACT)
    del in_float32
    if tuned is not None:
        show("eigsh with the best of 16 settings", lambda: by_eigsh(Operator(training), *tuned[1]))
    show("PyHessian", lambda: by_pyhessian(training))
    show("curvlinops and eigsh", lambda: by_curvlinops(training, EXACT))
    _measure_step_readings(training, step, weights)


def _measure_step_readings(training: Training, step: float, weights: int) -> None:
    """Print the rows of the critical sharpness and of λ_step, whose errors are against the same in float64."""
    parameters = list(training.model.parameters())
    twin = _in_float64(training)
    start = [parameter.detach().clone() for parameter in twin.model.parameters()]
    lr = training.optimizer.param_groups[0]["lr"]
    snapshot = StepSnapshot(parameters, lr)
    training.step()
    moved = [now.detach().double() - before for now, before in zip(parameters, start, strict=True)]

    @torch.no_grad()
    def rise(length: float) -> float:
        """Return the rise of the loss in float64 at a multiple of the step."""
        for parameter, before, along in zip(twin.model.parameters(), start, moved, strict=True):
            parameter.copy_(before + length * along)
        return float(twin.loss()) - at_start

    at_start = 0.0
    at_start = rise(0.0)
    slope = sum(
        float((g * d).sum())
        for g, d in zip(torch.autograd.grad(twin.loss(), list(twin.model.parameters())), moved, strict=True)
    )
    furthest = next(length for length in 2.0 ** np.arange(0, 30) if rise(float(length)) > 0)
    critical_truth = 2.0 / lr / float(brentq(rise, furthest / 2 if furthest > 1 else 1e-3, furthest, rtol=1e-9))
    step_truth = 2.0 * (rise(1.0) - slope) / (-lr * slope)
    critical = CriticalSharpness()

    def search(*, is_first: bool) -> Found:
        with Sandbox(training.model, parameters) as sandbox:
            reading = (CriticalSharpness() if is_first else critical).measure(sandbox, training.loss, snapshot)
        return Found(value=math.nan if reading.sharpness is None else reading.sharpness, products=reading.forwards)

    def probe() -> Found:
        with Sandbox(training.model, parameters) as sandbox:
            loss = sandbox.evaluate(training.loss, derivatives=0)
            values = snapshot.measure(sandbox, training.loss)
        found = step_curvature(
            loss=float(loss),
            loss_before=float(values["loss_before"]),
            slope=float(values["slope"]),
            lr=lr,
            rounding=0.0,
        )
        return Found(value=math.nan if found is None else found, products=2)

    search(is_first=False)
    for name, find, truth in (
        ("critical sharpness, first reading", partial(search, is_first=True), critical_truth),
        ("critical sharpness, later reading", partial(search, is_first=False), critical_truth),
        ("λ_step", probe, step_truth),
    ):
        found, seconds = find(), median(_seconds(find) for _ in range(REPEATS))
        print(
            f"| Spikewatch, {name} | {found.products} losses | {seconds / step:.1f} | "
            f"{_memory(find) / weights / 4:.1f} | {found.error(truth):.1e} |",
            flush=True,
        )


def _network() -> Training:
    torch.manual_seed(0)
    sizes = [256, 512, 512, 10]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.GELU()]
    model = nn.Sequential(*layers[:-1])
    inputs = torch.randn(256, 256)
    return Training(
        name="perceptron",
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.05),
        inputs=inputs,
        targets=torch.sin(inputs[:, :10]),
        criterion=F.mse_loss,
    )


def _in_float64(training: Training) -> Training:
    """Return a copy of the training at its present point, with SGD."""
    model = copy.deepcopy(training.model).double()
    return Training(
        name=training.name,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), training.optimizer.param_groups[0]["lr"]),
        inputs=training.inputs.double(),
        targets=training.targets.double() if training.targets.is_floating_point() else training.targets,
        criterion=training.criterion,
    )


def _memory(action: Callable[[], Any]) -> float:
    """Return the bytes that ``action`` needs at most beyond what is in use."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before does not hide what is needed now
    return (peak_extra(torch.device("cpu"), action) or math.nan) * MIB


def _seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    """Measure the parts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--parts", default="products,methods")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], None]] = {
        "products": lambda: measure_products(options.models),
        "methods": measure_methods,
    }
    for name in options.parts.split(","):
        parts[name]()


if __name__ == "__main__":
    main()
