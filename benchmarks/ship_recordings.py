"""Make the recordings that are part of the package from those of `benchmarks.record_cases`.

    python -m benchmarks.record_cases DIRECTORY --seeds 1
    python -m benchmarks.ship_recordings DIRECTORY

They are few and small, one for each kind of run: full batches and mini-batches that spike, an injected fault, and a
healthy control. Layer statistics keep 12 bits, as on a server with compact precision, and scalars are single precision.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.spike_trainings import CASES
from server.evaluation.evaluate import SHIPPED
from server.evaluation.recording import FULL_BATCH, MINI_BATCH
from server.evaluation.recordings import read_recording, write_recording
from server.models import Sample

CHOSEN = (
    "regression-tanh",
    "modular-addition",
    "regression-batch-128",
    "digits-lr-jump",
    "regression-batch-16-healthy",
)
LEFT_OUT = ("step_time", "curvature_share")
"""Scalars about the machine, not about the run."""


def small(sample: Sample, began: float) -> Sample:
    """Return a sample that takes less space: times from the start of the run, statistics of 12 bits."""
    scalars = {name: float(np.float32(value)) for name, value in sample.scalars.items() if name not in LEFT_OUT}
    block = sample.block
    if block is not None:
        bits = np.ascontiguousarray(block, dtype=np.float32).view(np.uint32)
        rounded = ((bits + np.uint32(0x400)) & np.uint32(0xFFFFF800)).view(np.float32)
        block = np.where(np.isfinite(block), rounded, block)
    return msgspec.structs.replace(sample, time=round(sample.time - began, 1), scalars=scalars, block=block)


def main() -> None:
    """Write the recordings into the package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="directory that record_cases has filled")
    options = parser.parse_args()
    SHIPPED.mkdir(exist_ok=True)
    for name in CHOSEN:
        case = CASES[name]
        samples = read_recording(options.directory / f"{name}-s0.npz").samples
        write_recording(
            SHIPPED / f"{name}.npz",
            [small(sample, samples[0].time) for sample in samples],
            cause=case.cause,
            fault_steps=case.fault_steps,
            family=case.family,
            batches=MINI_BATCH if case.has_mini_batches else FULL_BATCH,
        )


if __name__ == "__main__":
    main()
