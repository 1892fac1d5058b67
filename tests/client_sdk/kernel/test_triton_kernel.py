"""The Triton kernel agrees with the float64 oracle in Triton's interpreter, and compiles for CUDA without a GPU."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from client_sdk.layers import map_layers
from client_sdk.optimizers import kind_of
from client_sdk.stats import Meter, chunk_table, kernel_code, triton_kernel
from client_sdk.stats.sums import SUMS, Flags
from tests.support.kernel_cases import differences

CASES = (
    "adam", "nadam", "adamax", "rmsprop", "rmsprop-momentum", "sgd", "sgd-momentum", "sgd-nesterov",
    "sgd-nesterov-folded", "unknown optimizer", "moments without a formula",
    "odd sizes", "many chunks", "gradient bfloat16", "everything bfloat16",
    "gradient float16", "everything float16", "state bfloat16", "matrix", "unaligned", "non-finite gradient",
    "overflow", "non-finite state", "zeros", "tiny numbers",
)  # fmt: skip


@pytest.fixture(scope="module")
def interpreted() -> Any:
    """Results of the program, which runs once for all cases."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "tests.client_sdk.kernel.interpreted"],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(root)},
        cwd=root,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_case_ran(interpreted: Any) -> None:
    assert tuple(interpreted["cases"]) == CASES


@pytest.mark.parametrize("name", CASES)
def test_sums_agree_with_float64(interpreted: Any, name: str) -> None:
    case = interpreted["cases"][name]
    assert differences(case["got"], case["want"], case["scale"]) == []
    assert case["again"], "the same inputs gave other bits"


def test_tensors_that_the_kernel_does_not_cover_are_measured_by_torch(interpreted: Any) -> None:
    plan = interpreted["plan"]
    assert plan["covered"] == [True, False, False, False, True]
    assert plan["fits"] == [True, False]
    for row, (got, want) in enumerate(zip(plan["got"], plan["want"], strict=True)):
        for value, true in zip(got, want, strict=True):
            assert math.isnan(value) if true is None else value == pytest.approx(true, rel=1e-4, abs=1e-3), row


def test_the_kernel_has_every_sum_and_every_flag() -> None:
    assert triton_kernel.KERNEL_SUMS == SUMS
    numbers_alone = {"intake"}
    assert set(kernel_code.BIT) | numbers_alone == set(Flags.__dataclass_fields__)


@pytest.mark.parametrize(("aligned", "capability"), [(True, 90), (False, 80)])
def test_the_kernel_compiles_for_cuda(
    aligned: bool, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = {
        "partials": "*fp32", "chunk_tensor": "*i32", "chunk_start": "*i64", "sizes": "*i64", "codes": "*i32",
        "addresses": "*i64", "terms": "*fp64", "constants": "*fp32", "length": "i32", "aligned": "constexpr",
        "block": "constexpr",
    }  # fmt: skip
    divisible = {(position,): [["tt.divisibility", 16]] for position in range(9)}
    source = ASTSource(
        triton_kernel.sum_chunks, signature, {"aligned": aligned, "block": triton_kernel.BLOCK}, divisible
    )
    options = {"num_warps": 4, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    assert ("ld.global.v4.b32" in compiled.asm["ptx"]) == aligned
    assert "atom." not in compiled.asm["ptx"]
    adding = ASTSource(
        triton_kernel.add_chunks,
        {"table": "*fp64", "partials": "*fp32", "first_chunk": "*i32", "rows": "*i32", "existing": "*i32"},
    )
    assert triton.compile(adding, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]


def test_a_kernel_that_cannot_start_is_replaced_by_torch_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chunk_table, "is_available", lambda device: True)  # there is no driver for a CPU
    torch.manual_seed(0)
    model = nn.Linear(30, 20)
    optimizer = torch.optim.AdamW(model.parameters())
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    with caplog.at_level(logging.WARNING, logger="client_sdk"):
        for _ in range(3):
            model(torch.randn(5, 30)).square().sum().backward()
            optimizer.step()
            measured = meter.measure(optimizer, histograms=False)
            assert measured is not None
            norms = [float(parameter.grad.norm()) for parameter in model.parameters() if parameter.grad is not None]
            block = measured.measurement().block
            assert block is not None
            assert block[:, meter.statistics.index("grad_norm")].tolist() == pytest.approx(norms)
    assert len([record for record in caplog.records if "separate torch operations" in record.getMessage()]) == 1
