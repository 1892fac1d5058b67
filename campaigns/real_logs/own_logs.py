"""Ten small synthetic logs, each with one thing that a detector of losses gets wrong easily.

    python -m campaigns.real_logs.own_logs [FOLDER]

writes them to ``tests/data/real-logs/own``; their labels are in ``tests/data/real-logs/labels.json`` and hold for every
seed. The same files result each time.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

FOLDER: Final = Path(__file__).parents[2] / "tests" / "data" / "real-logs" / "own"
SEED: Final = 3
"""Seed of the noise in the stored logs."""
Row = tuple[float, ...]
"""Step and scalars of one record."""
Array = NDArray[np.float64]


def own_logs(seed: int) -> Iterator[tuple[str, tuple[str, ...], list[Row]]]:
    """Yield the name, the columns and the rows of each log."""
    loss, loss_and_gradient = ("step", "loss"), ("step", "loss", "grad_norm")
    generator = np.random.default_rng(seed)
    calm = _calm(600, generator)
    at = np.arange(600)
    gradients = np.exp(0.15 * generator.standard_normal(600))
    yield "healthy.csv", loss_and_gradient, _rows(1, calm, gradients)
    yield "drift_slow.csv", loss, _rows(1, calm + np.where(at >= 300, 0.02 * (at - 300), 0.0))
    yield "nan_stays.csv", loss, _rows(1, np.where(at >= 300, np.nan, calm))
    yield "two_peaks.csv", loss, _rows(1, _two_peaks(1_000, generator))
    curve = _spike_and_divergence(generator)
    for interval in (1, 10, 100):
        yield f"every_{interval}.csv", loss, _rows(interval, curve)
    yield "warm_up_two_rates.csv", ("step", "loss", "lr"), list(_warm_up())
    yield "gradient_first.csv", loss_and_gradient, _gradient_first(generator)
    yield "restart.csv", loss_and_gradient, _restart(generator)


def write(folder: Path, seed: int = SEED) -> None:
    """Write the logs to a folder, with the noise of a seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns, rows in own_logs(seed):
        lines = [",".join(columns), *(",".join(f"{value:.5g}" for value in row) for row in rows)]
        (folder / name).write_text("\n".join(lines) + "\n")


def _calm(records: int, generator: np.random.Generator) -> Array:
    """Return a loss that falls from 3 to 1 with a noise of 0.6 %."""
    return 2 * np.exp(-np.arange(records) / 150) + 1 + 0.006 * generator.standard_normal(records)


def _rows(interval: int, *columns: Array) -> list[Row]:
    return [(float(interval * at), *map(float, values)) for at, values in enumerate(zip(*columns, strict=True))]


def _two_peaks(records: int, generator: np.random.Generator) -> Array:
    """Return losses of two kinds of batches, as mixup produces them: about 1.3, and 1.5 to 3.2."""
    plain = 1.2 + 0.15 * generator.random(records)
    mixed = 1.5 + 1.7 * generator.random(records)
    return np.where(generator.random(records) < 0.65, plain, mixed)


def _spike_and_divergence(generator: np.random.Generator) -> Array:
    """Return a curve with a spike of 20 records that fades, and later a divergence that stays."""
    curve = 2.0 + 1.5 * np.exp(-np.arange(600) / 150) + 0.02 * generator.standard_normal(600)
    curve[200:220] += np.concatenate([np.linspace(1, 6, 6), np.linspace(6, 0.2, 14)])
    curve[450:] += 4.0
    return curve


def _warm_up() -> Iterator[Row]:
    """Yield a healthy run whose learning rate warms up over 1,000 steps: each step to 100, then every 500 steps."""
    for step in [*range(1, 101), *range(500, 20_001, 500)]:
        yield float(step), 4 * math.exp(-step / 3_000) + 2, 1e-3 * min(1.0, step / 1_000)


def _gradient_first(generator: np.random.Generator) -> list[Row]:
    """Return a run whose gradient norm is 3.9 to 600 times its usual value in the four records before the loss."""
    loss = _calm(600, generator)
    gradients = np.exp(0.1 * generator.standard_normal(600))
    gradients[450:454] = 3.9, 9.9, 66.0, 600.0
    loss[454:474] += np.linspace(4, 0.4, 20)
    gradients[454:474] *= np.linspace(80, 1, 20)
    return _rows(1, loss, gradients)


def _restart(generator: np.random.Generator) -> list[Row]:
    """Return a run, logged every 100 steps, that restarts from nothing: loss and gradient norm begin again."""
    at = np.arange(600) % 300
    loss = (1.1 + 5 * np.exp(-at / 25)) * (1 + 0.02 * generator.standard_normal(600))
    gradients = (0.6 + 4 * np.exp(-at / 10)) * np.exp(0.12 * generator.standard_normal(600))
    return _rows(100, loss, gradients)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
