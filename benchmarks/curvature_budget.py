"""The share of a training's time that the SDK takes, measured from outside, and what a budget sees of a crossing.

    python -m benchmarks.curvature_budget [--models 20] [--steps 450] [--clock cpu] [--parts budget,crossing]

`budget` trains random models with a closure at every record and measures from outside what share of the time over any
200 steps the SDK takes. `crossing` is the step at which λ_max of a tanh network was first read above its limit. With
`--clock cpu`, the time is that of the training thread on a processor everywhere, also in the SDK, so that other work on
the machine does not count.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

import client_sdk
from benchmarks.random_trainings import Training, random_training
from benchmarks.spool_series import series_of
from client_sdk.curvature import Probe
from client_sdk.stats import Meter

Vector = NDArray[np.float64]
WINDOW: Final = 200  # steps over which the budget holds


@contextmanager
def measured_from_outside() -> Iterator[list[float]]:
    """Yield a list whose last entry grows by the seconds that hooks and measurements of curvature take."""
    spent = [0.0]
    probe_methods = {name: getattr(Probe, name) for name in ("before_step", "follow", "measure")}

    def timed(inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*args, **options)
            finally:
                spent[-1] += time.perf_counter() - started

        return outer

    meter_methods = {name: getattr(Meter, name) for name in ("before_step", "measure")}
    for owner, methods in ((Probe, probe_methods), (Meter, meter_methods)):
        for name, inner in methods.items():
            setattr(owner, name, timed(inner))
    try:
        yield spent
    finally:
        for owner, methods in ((Probe, probe_methods), (Meter, meter_methods)):
            for name, inner in methods.items():
                setattr(owner, name, inner)


def measure_budget(models: int, steps: int) -> None:
    """Print the largest share of the time over any 200 steps that measuring took in random trainings."""
    print(
        f"share of the training's time at budget 0.05, {models} random models, {steps} steps, goal: 5 % over 200 steps"
    )
    kept = 0
    for seed in range(models):
        training = random_training(seed, scale=2)
        own, spent, around, readings = _train(training, steps, budget=0.05)
        worst = _worst(spent, own)
        kept += worst <= 0.05
        print(
            f"  {training.name:<36} step {median(own) * 1e3:6.2f} ms   worst 200 steps {worst:6.1%}, "
            f"with hooks and log {_worst(spent + around, own):6.1%}   "
            f"longest record {spent.max() / median(own):5.1f} steps   readings of λ_max {readings}   "
            f"hooks and log besides {median(around) * 1e6:4.0f} µs",
            flush=True,
        )
    print(f"  kept in {kept} of {models}")


def _worst(spent: Vector, own: Vector) -> float:
    """Return the largest share of ``spent`` in the time ``own`` of the training over any `WINDOW` steps."""
    sums = [np.convolve(each, np.ones(WINDOW), "valid") for each in (spent, own)]
    return float((sums[0] / sums[1]).max())


def _train(training: Training, steps: int, *, budget: float) -> tuple[Vector, Vector, Vector, int]:
    """Return the seconds of each step of the training alone, of measuring, and of hooks and log besides, [steps] each.

    The last number is how often λ_max was read.
    """
    own, spent, around = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    with tempfile.TemporaryDirectory() as directory, measured_from_outside() as clock:
        run = client_sdk.init(project="benchmark", mode="offline", directory=directory)
        handle = client_sdk.watch(training.model, training.optimizer, budget=budget)
        hooks = _timed_hooks(training.optimizer)
        for step in range(steps):
            started, clock[-1], hooks[-1] = time.perf_counter(), 0.0, 0.0
            training.step()
            logged = time.perf_counter()
            client_sdk.log({"loss": 0.0}, step=step, closure=training.loss)
            ended = time.perf_counter()
            spent[step] = clock[-1]
            around[step] = hooks[-1] + ended - logged - spent[step]
            own[step] = ended - started - spent[step] - around[step]
        handle.remove()
        run.finish()
        series = series_of(Path(directory), steps)
    return own, spent, around, int(np.isfinite(series.get("lambda_max", np.full(1, np.nan))).sum())


def _timed_hooks(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return a list whose last entry grows by the seconds that the hooks of ``optimizer`` take."""
    spent = [0.0]
    for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
        for key, inner in list(hooks.items()):

            def outer(*args: Any, inner: Any = inner, **options: Any) -> Any:
                started = time.perf_counter()
                try:
                    return inner(*args, **options)
                finally:
                    spent[-1] += time.perf_counter() - started

            hooks[key] = outer
    return spent


def measure_crossing() -> None:
    """Print when the crossing of λ_max over 2/η before the spike of a tanh network is read, for several budgets."""
    print("first reading of λ_max above 2/η = 200 after step 400 of a tanh network whose loss spikes later")
    for budget in (0.05, 0.25, 1.0, math.inf):
        torch.manual_seed(0)
        inputs, direction = torch.randn(200, 50), torch.randn(50, 1) / 50**0.5
        targets = torch.sin(3 * inputs @ direction) + inputs @ direction
        model = nn.Sequential(nn.Linear(50, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        training = Training(
            name="tanh",
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.999)),
            inputs=inputs,
            targets=targets,
            criterion=F.mse_loss,
        )
        steps = 760
        losses = np.zeros(steps)
        with tempfile.TemporaryDirectory() as directory:
            run = client_sdk.init(project="benchmark", mode="offline", directory=directory)
            handle = client_sdk.watch(model, training.optimizer, budget=budget)
            for step in range(steps):
                training.step()
                losses[step] = float(training.loss().detach())
                client_sdk.log({"loss": losses[step]}, step=step, closure=training.loss)
            handle.remove()
            run.finish()
            lambdas = series_of(Path(directory), steps).get("lambda_max", np.full(steps, np.nan))
        calm = 400 + int(losses[400:].argmin())
        onset = next((at for at in range(calm, steps) if losses[at] > 100 * losses[calm]), None)
        crossing = next((at for at in range(400, steps) if lambdas[at] > 200), None)
        print(f"  budget {budget:<6} crossing read at {crossing}, loss rises at {onset}, readings "
              f"{int(np.isfinite(lambdas).sum())}", flush=True)  # fmt: skip


def main() -> None:
    """Measure the parts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--parts", default="budget,crossing")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.clock == "cpu":
        time.perf_counter = time.thread_time
    parts: dict[str, Callable[[], None]] = {
        "budget": lambda: measure_budget(options.models, options.steps),
        "crossing": measure_crossing,
    }
    for name in options.parts.split(","):
        parts[name]()


if __name__ == "__main__":
    main()
