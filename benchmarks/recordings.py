"""Real series for the benchmarks of storage: trainings that the SDK itself records here, cached on disk.

Owns two recordings, each created once, offline, on the CPU, in about a minute: `transformer` (AdamW, mini-batch noise,
30 layers) and `tanh-net` (full batch, Adam, which spikes). Compression is never measured on random numbers.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client_sdk.protocol import decode_record
from client_sdk.spool.directory import find_spools
from client_sdk.spool.spool import Spool

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".spikewatch" / "benchmarks"
NAMES = ("transformer", "tanh-net")
STEPS = 2_048

TRAINING = """
import sys
import torch, torch.nn.functional as F
from torch import nn
import client_sdk
from client_sdk.config import Settings
name, directory, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1); torch.manual_seed(1)
run = client_sdk.init(project="benchmark", name=name, mode="offline", directory=directory)
if name == "transformer":
    from server.demo.char_transformer import BATCH, CONTEXT, Decoder, standard_library_text
    text, model = standard_library_text(), Decoder(vocabulary=128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    def new_batch():
        window = text[torch.randint(len(text) - CONTEXT - 1, (BATCH, 1)) + torch.arange(CONTEXT + 1)]
        return lambda: F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
else:
    inputs = torch.randn(200, 50); direction = torch.randn(50, 1) / 50**0.5
    targets = torch.sin(3 * inputs @ direction) + inputs @ direction
    model = nn.Sequential(nn.Linear(50, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    def new_batch():
        return lambda: ((model(inputs) - targets) ** 2).mean()
client_sdk.watch(model, optimizer, every=1, curvature_every=100, precision="exact", budget=float("inf"))
for step in range(1, steps + 1):
    batch_loss = new_batch()
    optimizer.zero_grad(); loss = batch_loss(); loss.backward(); optimizer.step()
    client_sdk.log({"loss": loss}, step=step, closure=batch_loss)
client_sdk.finish()
"""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Series of n steps of one training, as the SDK sends them at the precision "exact"."""

    layers: tuple[str, ...]
    """Names of the layers."""
    statistics: tuple[str, ...]
    """Names of the statistics."""
    cube: NDArray[np.float32]
    """Values of the statistics, shape (statistics, layers, n); NaN where not measured."""
    scalars: dict[str, NDArray[np.float64]]
    """Logged values of each scalar; scalars that are not logged at every step are shorter."""


def load(name: str) -> Recording:
    """Return a recording, which is created if it is not cached."""
    path = CACHE / f"{name}-exact-{STEPS}.npz"
    if not path.exists():
        _record(name, path)
    with np.load(path) as data:
        scalars = {key.removeprefix("scalar:"): data[key] for key in data.files if key.startswith("scalar:")}
        return Recording(
            layers=tuple(data["layers"].tolist()),
            statistics=tuple(data["statistics"].tolist()),
            cube=data["cube"],
            scalars=scalars,
        )


def _record(name: str, path: Path) -> None:
    directory = CACHE / f"{name}-spool"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    print(f"recording {name}: {STEPS} steps, once", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-c", TRAINING, name, str(directory), str(STEPS)], check=True, cwd=ROOT)
    ((spool_directory, _),) = find_spools(directory)
    spool = Spool.open(spool_directory)
    layout = spool.hello.layouts[0]
    blocks: list[NDArray[np.float32]] = []
    scalars: dict[str, list[float]] = {}
    seq = 0
    while payloads := spool.read(seq, 8 * 1024 * 1024):
        seq += len(payloads)
        for record in map(decode_record, payloads):
            for key, value in record.scalars.items():
                scalars.setdefault(key, []).append(value)
            if record.block is not None:
                blocks.append(np.frombuffer(record.block, "<f4").reshape(len(layout.layers), -1))
    spool.release()
    cube = np.ascontiguousarray(np.stack(blocks).transpose(2, 1, 0))
    arrays = {f"scalar:{key}": np.array(values, dtype=np.float64) for key, values in scalars.items()}
    np.savez(
        path,
        layers=np.array(layout.layers),
        statistics=np.array(layout.statistics),
        cube=cube,
        **arrays,  # type: ignore[arg-type]  # the stub mistakes the keywords for its own options
    )
    shutil.rmtree(directory)
