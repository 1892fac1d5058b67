"""Lines that well-known training programs print become runs."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from server.errors import ConfigurationError, ImportFileError
from server.imports.options import ReadOptions, compiled_pattern
from tests.server.imports.conftest import Workshop

NANOGPT = """step 0: train loss 4.2874, val loss 4.2823
iter 0: loss 4.2649, time 26500.37ms, mfu -100.00%
iter 10: loss 3.2438, time 38.89ms, mfu 9.82%
step 10: train loss 3.1, val loss 3.2
"""
LLMC = """val loss 11.009678
step    1/19560 | loss 11.010103 (+nanz)| norm 15.3456 (+nanz)| lr 8.57e-07 | 1234.56 ms | 45.6% bf16 MFU | 424242 tok/s
step    2/19560 | train loss 10.5 | norm nan | lr 1.00e-06 | (3.2 s | 163000 tok/s)
val loss 9.5
"""
LLMC_FILE = "s:0 tel:11.0097\ns:1 trl:11.0101 lr:0.000001 norm:15.35\ns:2 trl:10.5 lr:0.000002 norm:14.2\n"
MEGATRON = """ [2024-03-10 12:30:45] iteration      100/  500000 | consumed samples:        51200 | \
elapsed time per iteration (ms): 1234.5 | \
learning rate: 6.000000E-06 | global batch size:   512 | lm loss: 9.123456E+00 | \
grad norm: 2.345 | number of nan iterations:   0 |
 validation loss at iteration 100 | lm loss value: 9.2E+00 | lm loss PPL: 9.9E+03 |
 [2024-03-10 12:31:45] iteration      200/  500000 | consumed samples:       102400 | lm loss: NaN | grad norm: 3.5 |
"""
TORCHTITAN = (
    "[titan] 2024-09-01 12:00:00,500 - root - INFO - \x1b[31mstep:  1  \x1b[32mloss: 12.2507  \x1b[33mgrad_norm: 1.5  "
    "\x1b[34mmemory: 24.5GiB(25.1%)  tps: 7,890  tflops: 53.1  mfu: 5.4%\x1b[39m\n"
    "[titan] 2024-09-01 12:00:10,500 - root - INFO - step: 10  loss: 10.5  grad_norm: 2.5  memory: 24.5GiB(25.1%)  "
    "tps: 8,000\n"
)
KERAS = """Epoch 1/2
1/10 ━━━━ 1s 50ms/step - accuracy: 0.1 - loss: 9.0\r10/10 ━━━━ 2s 3ms/step - accuracy: 0.5 - loss: 2.0 - val_loss: 2.5
Epoch 2/2
10/10 - 1s - 3ms/step - accuracy: 0.6 - loss: 1.0 - val_loss: 1.5
10/10 - 0s - loss: 7.0
"""
MODDED = """import torch
print(f"step:{step}/{total} val_loss:{val:.4f}")
step:0/1750 val_loss:10.8258 train_time:0ms step_avg:0.00ms
step:1/1750 train_loss:10.83 train_time:123ms step_avg:nanms
step:2/1750 train_loss:9.5 train_time:246ms step_avg:123.0ms
"""
NANOCHAT = "step 00002/21400 (0.01%) | loss: 5.125 | grad norm: 0.25 | lrm: 1.00 | dt: 500.12ms | tok/sec: 1,000\n"


def values(table: object, name: str) -> dict[int, float]:
    """The values of a column that are present, keyed by step."""
    rows = zip(table["step"].to_pylist(), table[name].to_pylist(), strict=True)  # type: ignore[index]
    return {step: value for step, value in rows if value is not None}


@pytest.mark.parametrize(
    ("text", "tag", "expected"),
    [
        (NANOGPT, "nanogpt", {"loss": {0: 4.2649, 10: 3.2438}, "val_loss": {0: 4.2823, 10: 3.2}, "mfu": {10: 9.82}}),
        (
            LLMC,
            "llm.c",
            {"loss": {1: 11.010103, 2: 10.5}, "val_loss": {0: 11.009678, 2: 9.5}, "lr": {1: 8.57e-7, 2: 1e-6}},
        ),
        (LLMC, "llm.c", {"grad_norm": {1: 15.3456, 2: math.nan}, "step_time": {1: 1.23456}}),
        (
            LLMC_FILE,
            "llm.c",
            {"loss": {1: 11.0101, 2: 10.5}, "val_loss": {0: 11.0097}, "grad_norm": {1: 15.35, 2: 14.2}},
        ),
        (
            MEGATRON,
            "megatron",
            {"loss": {100: 9.123456, 200: math.nan}, "lr": {100: 6e-6}, "samples": {100: 51200, 200: 102400}},
        ),
        (
            MEGATRON,
            "megatron",
            {"val/lm loss": {100: 9.2}, "grad_norm": {100: 2.345, 200: 3.5}, "step_time": {100: 1.2345}},
        ),
        (TORCHTITAN, "torchtitan", {"loss": {1: 12.2507, 10: 10.5}, "grad_norm": {1: 1.5, 10: 2.5}}),
        (
            TORCHTITAN,
            "torchtitan",
            {"tokens_per_second": {1: 7890, 10: 8000}, "time": {1: 1725192000.5, 10: 1725192010.5}},
        ),
        (KERAS, "keras", {"loss": {1: 2.0, 2: 1.0}, "val_loss": {1: 2.5, 2: 1.5}, "accuracy": {1: 0.5, 2: 0.6}}),
        (MODDED, "text", {"loss": {1: 10.83, 2: 9.5}, "val_loss": {0: 10.8258}}),
        (NANOCHAT, "text", {"loss": {2: 5.125}, "grad_norm": {2: 0.25}}),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 12 else "",
)
async def test_lines_of_a_known_program_are_recognised(
    workshop: Workshop, tmp_path: Path, text: str, tag: str, expected: dict[str, dict[int, float]]
) -> None:
    file = tmp_path / "gpt.log"
    file.write_text(text)
    (done,) = await workshop.import_all(file)
    assert (await workshop.details(done.run_id))["tags"] == [tag]
    table = await workshop.table(done.run_id, tmp_path)
    for name, series in expected.items():
        found = values(table, name)
        if name == "time":  # the lines themselves have no scalar of this name
            assert found == series
            continue
        assert list(found) == list(series)
        np.testing.assert_allclose(list(found.values()), list(series.values()), rtol=1e-12)


TRAINING = """
import contextlib, json, sys
from pathlib import Path

import keras
import numpy as np

rng = np.random.default_rng(0)
inputs, targets = rng.normal(size=(64, 4)), rng.normal(size=(64, 1))
model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse", run_eagerly=True)
for verbose in (1, 2):
    folder = Path(sys.argv[1], str(verbose))
    folder.mkdir()
    with (folder / "train.out").open("w") as out, contextlib.redirect_stdout(out):
        csv = keras.callbacks.CSVLogger(str(folder / "history.csv"))
        told = model.fit(inputs, targets, epochs=3, validation_data=(inputs, targets), verbose=verbose, callbacks=[csv])
        model.evaluate(inputs, targets, verbose=verbose)
    (folder / "told.json").write_text(json.dumps(told.history))
"""


async def test_what_keras_prints_is_read(workshop: Workshop, tmp_path: Path) -> None:
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", TRAINING, str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"},
        check=True,
    )
    for folder in (tmp_path / "1", tmp_path / "2"):
        told = json.loads((folder / "told.json").read_text())
        (text,) = await workshop.import_all(folder / "train.out")
        for name in ("loss", "val_loss"):
            found = values(await workshop.table(text.run_id, tmp_path), name)
            assert list(found) == [1, 2, 3]
            np.testing.assert_allclose(list(found.values()), told[name], atol=1e-4)
        (table,) = await workshop.import_all(folder / "history.csv")
        assert values(await workshop.table(table.run_id, tmp_path), "loss") == dict(enumerate(told["loss"]))


async def test_a_pattern_of_the_user_reads_any_lines(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text(
        "hello\n[a] upd 1 :: nll 2.5 (t=1700000000000)\n[b] upd 1 :: nll 3.5 (t=1700000001000)\n"
        "[a] upd 2 :: nll 1,000.5 (t=1700000002000)\n"
    )
    pattern = compiled_pattern(
        r"\[(?P<run>\w+)\] upd (?P<step>\d+) :: nll (?P<loss>\S+) \(t=(?P<time>\d+)\)", step_by_row=False
    )
    first, second = await workshop.import_all(file, ReadOptions(pattern=pattern))
    assert (first.name, second.name) == ("a", "b")
    table = await workshop.table(first.run_id, tmp_path)
    assert values(table, "loss") == {1: 2.5, 2: 1000.5}
    assert table["time"].to_pylist() == [1.7e9, 1.7e9 + 2]
    by_row = compiled_pattern(r"nll (?P<loss>\S+)", step_by_row=True)
    (rows,) = await workshop.import_all(file, ReadOptions(pattern=by_row, step_by_row=True))
    assert values(await workshop.table(rows.run_id, tmp_path), "loss") == {0: 2.5, 1: 3.5, 2: 1000.5}


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "--pattern is not a regular expression"),
        (r"loss (?P<loss>\S+)", r"no group \(\?P<step>"),
        (r"step (?P<step>\d+)", "no group for a value"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        compiled_pattern(pattern, step_by_row=False)


@pytest.mark.parametrize(
    ("text", "pattern", "reason"),
    [
        ("step 1 loss abc\n", r"step (?P<step>\d+) loss (?P<loss>\S+)", "own.log, line 1: 'abc' in the group 'loss'"),
        ("step x loss 1\n", r"step (?P<step>\S+) loss (?P<loss>\S+)", "own.log, line 1: 'x' in the group 'step'"),
        ("\nhello\n", r"step (?P<step>\d+) loss (?P<loss>\S+)", "no line matches --pattern; the first line is 'hello'"),
        ("hello\nworld\n", None, "no line has a format that is known .*--pattern"),
        ("", None, "the file is empty"),
    ],
)
async def test_a_text_that_cannot_be_read_is_refused_with_its_line(
    workshop: Workshop, tmp_path: Path, text: str, pattern: str | None, reason: str
) -> None:
    (tmp_path / "own.log").write_text(text)
    options = ReadOptions(pattern=None if pattern is None else compiled_pattern(pattern, step_by_row=False))
    with pytest.raises(ImportFileError, match=reason):
        await workshop.import_all(tmp_path / "own.log", options)
