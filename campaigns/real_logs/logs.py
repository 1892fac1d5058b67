"""The logs of a folder, read as `spikewatch import` reads them: the same names of scalars, types and attempts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from client_sdk.vocabulary import guess_names
from server.imports.discover import SUFFIXES, discover
from server.imports.logged_run import LoggedRun
from server.imports.options import ReadOptions
from server.models import Sample

PREFIXED: Final = "bloom"
"""Kind of log that holds only the records around instabilities. Calm records of our own are put before each of them."""
PREFIX_RECORDS: Final = 400
PREFIX_LOSS, PREFIX_GRAD_NORM = 3.1, 3_000.0
PREFIX_NOISE: Final = {"loss": 0.01, "grad_norm": 0.08}
"""Standard deviation of the calm records, relative to their level."""
APART: Final = 250
"""Number of steps without a record after which the log of such a kind continues at the next instability."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """One log: the records of one run, in their order."""

    kind: str
    """Name of the folder that holds the log."""
    name: str
    """Path of the log with the folder of its kind first."""
    samples: tuple[Sample, ...]

    @property
    def steps(self) -> int:
        """Number of training steps from the first record to the last one."""
        return self.samples[-1].step - self.samples[0].step + 1 if self.samples else 0


def find_logs(folder: Path) -> list[Path]:
    """Return the files with logs in a folder, sorted. Raises `ValueError` if there are none."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in SUFFIXES)
    if not found:
        raise ValueError(f"there are no logs in {folder}; give a folder with {', '.join(sorted(SUFFIXES))} files")
    return found


def read_logs(folder: Path, path: Path) -> list[Log]:
    """Return the logs of a file in a folder. Raises `ImportFileError` if it cannot be read."""
    relative = path.relative_to(folder)
    if len(relative.parts) == 1:
        relative = Path(folder.resolve().name) / relative
    kind = relative.parts[0]
    logs = []
    for _, open_runs in discover(path, ReadOptions(), lambda _: None):
        for run in open_runs():
            samples = tuple(_samples(run))
            pieces = _with_calm_prefix(samples) if kind == PREFIXED else [samples]
            logs += [Log(kind=kind, name=relative.as_posix(), samples=piece) for piece in pieces]
    return logs


def _samples(run: LoggedRun) -> Iterator[Sample]:
    """Yield the samples of a run's first rank, one record a second.

    The clock is ours, because a log without times would otherwise happen within one moment, and limits on messages
    per hour would hide what is told.
    """
    names = {name for _, record in run.records() for name in record.scalars}
    known = guess_names(names) if run.renames else {}
    first: int | None = None
    for number, (rank, record) in enumerate(run.records()):
        first = rank if first is None else first
        if rank != first:
            continue
        scalars = {known.get(name, name): value for name, value in record.scalars.items()}
        yield Sample(step=record.step, time=float(number), scalars=scalars)


def _with_calm_prefix(samples: tuple[Sample, ...]) -> list[tuple[Sample, ...]]:
    """Divide a log of instabilities into one log for each, and put calm records before it.

    The calm records have the interval of the first two records that follow.
    """
    edges = [at for at, (one, two) in enumerate(pairwise(samples), 1) if two.step - one.step > APART]
    pieces = [samples[begin:end] for begin, end in pairwise([0, *edges, len(samples)])]
    generator = np.random.default_rng(0)
    logs = []
    for piece in pieces:
        if len(piece) < 2:
            continue
        interval = piece[1].step - piece[0].step
        levels = {"loss": PREFIX_LOSS, "grad_norm": PREFIX_GRAD_NORM}
        calm = []
        for number in range(PREFIX_RECORDS, 0, -1):
            step = piece[0].step - number * interval
            noise = {name: 1 + deviation * generator.standard_normal() for name, deviation in PREFIX_NOISE.items()}
            calm.append((step, {name: level * noise[name] for name, level in levels.items()}))
        records = [*calm, *((sample.step, sample.scalars) for sample in piece)]
        logs.append(
            tuple(
                Sample(step=step, time=float(at), scalars=scalars)
                for at, (step, scalars) in enumerate(records)
                if step >= 0
            )
        )
    return logs
