"""Record small trainings through the SDK, as recordings that `spikewatch evaluate` reads.

    python -m benchmarks.record_cases DIRECTORY [--set own|held-out] [--case NAME …] [--seeds N] [--first-seed N]

The cases are those of `spike_trainings`, which constants may be fitted to, or those of `held_out_trainings`, which are
a test alone. Each recording holds every record that the SDK sent, with all scalars of the curvature and all layer
statistics, its own family, cause and fault steps, and whether its steps read batches or all of the data. Recordings
that exist are kept. A seed takes seconds to minutes; the whole set half an hour.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import client_sdk
from benchmarks import held_out_trainings, spike_trainings
from benchmarks.spike_trainings import Case
from client_sdk.protocol import decode_record
from client_sdk.spool.directory import find_spools
from client_sdk.spool.spool import Spool
from server.evaluation.recording import FULL_BATCH, MINI_BATCH
from server.evaluation.recordings import write_recording
from server.models import Layout, Sample

SETS = {"own": spike_trainings.CASES, "held-out": held_out_trainings.CASES}
"""Sets of cases by name."""
AFTER_NONFINITE = 3
"""Number of steps that a training goes on for after its loss is no longer finite."""


def record(case: Case, seed: int, *, curvature_every: int = 10) -> list[Sample]:
    """Train one case, watched by the SDK, and return its samples."""
    torch.manual_seed(seed)
    training = case.build()
    optimizer = case.optimizer(training.model)

    def prepare(step: int) -> Callable[[], Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = case.rate(step)
        return training.new_batch(step)

    return record_training(training.model, optimizer, prepare, case.steps, curvature_every=curvature_every)


def record_training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    prepare: Callable[[int], Callable[[], Tensor]],
    steps: int,
    *,
    curvature_every: int = 10,
) -> list[Sample]:
    """Train a model for ``steps`` steps and return its samples; ``prepare`` returns the loss function of a step."""
    bad = 0
    with tempfile.TemporaryDirectory() as directory:
        run = client_sdk.init(project="recordings", name="recording", mode="offline", directory=directory)
        handle = client_sdk.watch(
            model, optimizer, every=1, histogram_every=10**9, curvature_every=curvature_every, budget=math.inf
        )
        for step in range(1, steps + 1):
            batch_loss = prepare(step)
            optimizer.zero_grad()
            loss = batch_loss()
            loss.backward()
            optimizer.step()
            client_sdk.log({"loss": loss}, step=step, closure=batch_loss)
            bad += not math.isfinite(loss.item())
            if bad > AFTER_NONFINITE:
                break
        handle.remove()
        run.finish()
        return _samples(Path(directory))


def _samples(directory: Path) -> list[Sample]:
    """Return the records of the only spool in a directory as the detectors read them."""
    ((spool_directory, _),) = find_spools(directory)
    spool = Spool.open(spool_directory)
    layouts = {
        layout.id: Layout(
            id=layout.id,
            layers=layout.layers,
            statistics=layout.statistics,
            sizes=layout.sizes,
            optimizer=layout.optimizer,
        )
        for layout in spool.hello.layouts
    }
    samples: list[Sample] = []
    while payloads := spool.read(len(samples), 8 * 1024 * 1024):
        for logged in map(decode_record, payloads):
            layout = None if logged.layout is None else layouts[logged.layout]
            block = None
            if layout is not None and logged.block is not None:
                block = np.frombuffer(logged.block, "<f4").reshape(len(layout.layers), len(layout.statistics))
            samples.append(
                Sample(step=logged.step, time=logged.time, scalars=logged.scalars, layout=layout, block=block)
            )
    spool.release()
    return samples


def main() -> None:
    """Record the cases that are not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--set", choices=SETS, default="own", dest="chosen")
    parser.add_argument("--case", nargs="+", metavar="NAME", help="cases of the set; without it all of them")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--curvature-every", type=int, default=10)
    options = parser.parse_args()
    cases = SETS[options.chosen]
    names = options.case or list(cases)
    if unknown := [name for name in names if name not in cases]:
        parser.error(f"no case named {', '.join(unknown)}; the set has {', '.join(cases)}")
    torch.set_num_threads(1)
    options.directory.mkdir(parents=True, exist_ok=True)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in names:
            path = options.directory / f"{name}-s{seed}.npz"
            if path.exists():
                continue
            began, case = time.perf_counter(), cases[name]
            samples = record(case, seed, curvature_every=options.curvature_every)
            write_recording(
                path,
                samples,
                cause=case.cause,
                fault_steps=case.fault_steps,
                family=case.family,
                batches=MINI_BATCH if case.has_mini_batches else FULL_BATCH,
            )
            sys.stdout.write(f"{path.name}: {len(samples)} steps in {time.perf_counter() - began:.0f} s\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
