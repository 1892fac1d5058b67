"""Host time of measuring a model of many layers on several ranks together, beside a fused AdamW step of the model.

Starts two processes that share one machine and hold copies of the model. Prints medians of steps in which everything
is done one after the other, as ratios to the optimizer's step. The sum runs on a thread of its own, so that the time
until it is there is no time that training waits, unless the next step is shorter.

    python -m benchmarks.rank_sums --layers 8000 --steps 40
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.multiprocessing.spawn import spawn

from client_sdk.distributed import Participation
from client_sdk.layers import map_layers
from client_sdk.optimizers import kind_of
from client_sdk.stats import AMOUNTS, Meter, share
from client_sdk.warner import Warner

RANKS = 2
WIDTH = 32  # of the square matrix of a layer
PARTS = ("optimizer step", "measure", "share", "share and compare weights", "until the sum is there")


def main() -> None:
    """Run the processes and print the table of rank 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        options = (str(Path(directory) / "store"), arguments.layers, arguments.steps)
        spawn(_train, options, nprocs=RANKS)


def _train(rank: int, store: str, layer_count: int, steps: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.randn(WIDTH, WIDTH)) for _ in range(layer_count)])
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    layers = map_layers(model, optimizer)
    meter = Meter(optimizer, kind_of(optimizer), layers)
    participation = Participation(model, optimizer, layers, Warner(), amounts=AMOUNTS)
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    torch.distributed.barrier()
    participation.settle()
    assert participation.team is not None
    for step in range(1, steps + 1):
        meter.before_step(optimizer)
        started = time.perf_counter()
        optimizer.step()
        stepped = time.perf_counter()
        own = meter.measure(optimizer, histograms=False)
        measured = time.perf_counter()
        compares = participation.team.compares_next
        shared = share(participation, own, meter, step=step, next_in=1, has_logged=rank == 0)
        sent = time.perf_counter()
        while not shared.ready():
            time.sleep(0.0005)
        done = time.perf_counter()
        participation.decide()
        torch.distributed.barrier()
        seconds["optimizer step"].append(stepped - started)
        seconds["measure"].append(measured - stepped)
        seconds["share and compare weights" if compares else "share"].append(sent - measured)
        seconds["until the sum is there"].append(done - sent)
    participation.leave()
    if rank == 0:
        base = statistics.median(seconds["optimizer step"])
        print(f"{layer_count} layers of {WIDTH * WIDTH} weights, {RANKS} ranks, {steps} steps, medians\n")
        print("| part | × a fused AdamW step |\n|---|---|")
        for part, values in seconds.items():
            print(f"| {part} | {statistics.median(values) / base:.4f} |")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
