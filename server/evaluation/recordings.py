"""Recorded runs on disk: reads and writes the files that detectors are evaluated on.

Reads two formats, one npz file for each run, and owns their meaning.

* **Spikewatch** (key `format` = "spikewatch-1"): `step` (n,), `time` (n,), one array (n,) for each scalar under
  `scalar:NAME` (NaN where absent), `block` (n, layers, statistics) float32, `layers`, `statistics`, `sizes`,
  `optimizer` (msgpack of `protocol.Optimizer`), optionally `cause`, `fault_steps`, `family`, `swell` and `batches`
  ("full" or "mini"). `write_recording` writes it.
* **Zoo**: the signals of a study of small runs, step by step: `loss`, `lr`, `gnorm`, per layer `g2` and `vh`, `lam` and
  `lgrad` every few steps, `thr` = 2/η; optionally `betas` and the same keys as above. Without `cause`, names that end
  in "-ok" are healthy controls; without `family`, the name up to the first hyphen is the family; without `batches`, a
  run with curvature of a batch that is not trained on (`lam_p`) has mini-batches, and one without it full ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from server.evaluation.recording import CONTROL, FULL_BATCH, MINI_BATCH, Recording
from server.models import Layout, Optimizer, Sample

FORMAT: Final = "spikewatch-1"
"""Value of the key `format` in files of this program."""
ZOO_STATISTICS: Final = ("grad_norm", "v_rms", "rms_ratio", "decoupling")


def recordings_in(directory: Path) -> list[Path]:
    """Return the files of the recordings in a directory by name. Raises `ValueError` if there is none."""
    paths = sorted(directory.glob("*.npz"))
    if not paths:
        raise ValueError(f"no recordings (*.npz) in {directory}; name a directory that has some")
    return paths


def read_recordings(directory: Path) -> Iterator[Recording]:
    """Yield every recording in a directory by name.

    Raises `ValueError` if there is none, or if a file has neither of the two formats.
    """
    return map(read_recording, recordings_in(directory))


def read_recording(path: Path) -> Recording:
    """Return the recording in a file. Raises `ValueError` if the file has neither of the two formats."""
    with np.load(path) as data:
        arrays = dict(data)
    if "format" in arrays and str(arrays["format"]) == FORMAT:
        return _from_spikewatch(path.stem, arrays)
    if {"loss", "g2", "vh", "thr"} <= arrays.keys():
        return _from_zoo(path.stem, arrays)
    raise ValueError(f"{path} is not a recording; remove it from the directory")


def write_recording(
    path: Path,
    samples: Sequence[Sample],
    cause: str = "",
    fault_steps: Sequence[int] = (),
    family: str = "",
    *,
    is_swell: bool = False,
    batches: str = "",
) -> None:
    """Write samples of one layout to a file. Samples without a block get one of NaN."""
    layout = next((sample.layout for sample in samples if sample.layout is not None), None)
    names = sorted({name for sample in samples for name in sample.scalars})
    arrays: dict[str, Any] = {
        f"scalar:{name}": np.array([sample.scalars.get(name, np.nan) for sample in samples]) for name in names
    }
    if layout is not None:
        empty = np.full((len(layout.layers), len(layout.statistics)), np.nan, dtype=np.float32)
        arrays["block"] = np.stack([empty if sample.block is None else sample.block for sample in samples])
        arrays["layers"] = np.array(layout.layers)
        arrays["statistics"] = np.array(layout.statistics)
        arrays["sizes"] = np.array(layout.sizes, dtype=np.int64)
        arrays["optimizer"] = np.frombuffer(msgspec.msgpack.encode(layout.optimizer), dtype=np.uint8)
    np.savez_compressed(
        path,
        format=np.array(FORMAT),
        step=np.array([sample.step for sample in samples], dtype=np.int64),
        time=np.array([sample.time for sample in samples]),
        cause=np.array(cause),
        family=np.array(family),
        fault_steps=np.array(fault_steps, dtype=np.int64),
        swell=np.array(is_swell),
        batches=np.array(batches),
        **arrays,
    )


def _from_spikewatch(name: str, arrays: dict[str, Any]) -> Recording:
    layout: Layout | None = None
    if "block" in arrays:
        layout = Layout(
            id=0,
            layers=tuple(str(layer) for layer in arrays["layers"]),
            statistics=tuple(str(statistic) for statistic in arrays["statistics"]),
            sizes=tuple(int(size) for size in arrays["sizes"]),
            optimizer=msgspec.msgpack.decode(arrays["optimizer"].tobytes(), type=Optimizer | None),
        )
    scalars = {key.removeprefix("scalar:"): values for key, values in arrays.items() if key.startswith("scalar:")}
    samples = [
        Sample(
            step=int(step),
            time=float(arrays["time"][i]),
            scalars={
                key: float(values[i]) for key, values in scalars.items() if key == "loss" or not np.isnan(values[i])
            },
            layout=layout,
            block=None if layout is None else arrays["block"][i],
        )
        for i, step in enumerate(arrays["step"])
    ]
    return _described(Recording(name=name, samples=samples, cause=""), arrays)


def _from_zoo(name: str, arrays: dict[str, Any]) -> Recording:
    layers = tuple(str(layer) for layer in arrays["names"])
    sizes = tuple(int(size) for size in arrays["sizes"])
    beta1, beta2 = (float(beta) for beta in arrays["betas"]) if "betas" in arrays else (0.9, None)
    optimizer = Optimizer(name="Adam", family="adam", lr=float(arrays["lr"].max()), beta1=beta1, beta2=beta2)
    layout = Layout(id=0, layers=layers, statistics=ZOO_STATISTICS, sizes=sizes, optimizer=optimizer)
    with np.errstate(all="ignore"):
        columns = (
            np.sqrt(arrays["g2"]),
            np.sqrt(arrays["vh"] / arrays["sizes"]),
            arrays["rms"],
            arrays["g2"] / arrays["vh"],
        )
    block = np.stack(columns, axis=2).astype(np.float32)
    keys = {"lr": "lr", "gnorm": "grad_norm", "lam": "lambda_max", "lgrad": "lambda_grad", "thr": "stability_limit"}
    samples = []
    for i, loss in enumerate(arrays["loss"]):
        scalars = {ours: float(arrays[theirs][i]) for theirs, ours in keys.items() if not np.isnan(arrays[theirs][i])}
        scalars["loss"] = float(loss)
        samples.append(Sample(step=i + 1, time=float(i + 1), scalars=scalars, layout=layout, block=block[i]))
    cause = CONTROL if name.endswith("-ok") else ""
    batches = ""
    if "lam_p" in arrays:
        batches = MINI_BATCH if np.isfinite(arrays["lam_p"]).any() else FULL_BATCH
    recording = Recording(name=name, samples=samples, cause=cause, family=name.partition("-")[0], batches=batches)
    return _described(recording, arrays)


def _described(recording: Recording, arrays: dict[str, Any]) -> Recording:
    """Return a recording with what its file says about it."""
    return replace(
        recording,
        cause=str(arrays.get("cause", recording.cause)),
        fault_steps=tuple(int(step) for step in arrays.get("fault_steps", ())),
        family=str(arrays.get("family", recording.family)),
        is_swell=bool(arrays.get("swell", False)),
        batches=str(arrays.get("batches", recording.batches)),
    )
