"""The numba kernel agrees with the float64 oracle, on one thread and on several."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from client_sdk.layers import map_layers
from client_sdk.optimizers import kind_of
from client_sdk.stats import Meter, host_table, numba_kernel
from client_sdk.stats.entry import Entry
from client_sdk.stats.host_table import HOST_KINDS, HostTable
from client_sdk.stats.kernel_code import covers
from client_sdk.stats.measurement_plan import MeasurementPlan
from client_sdk.stats.sums import FLAT, SUMS
from tests.support.kernel_cases import ABSOLUTE, ADAM, TERMS, Case, cases, differences, entry, oracle

CASES = [case for case in cases() if all(covers(entry, HOST_KINDS) for entry in case.entries)]
CPU = torch.device("cpu")


def measured(entries: Sequence[Entry]) -> Tensor:
    terms = torch.tensor([TERMS] * len(entries), dtype=torch.float64)
    table = torch.full((len(entries), len(SUMS)), -1.0, dtype=torch.float64)
    HostTable(entries, range(len(entries)), range(len(entries))).measure(entries, terms, table)
    return table


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_sums_agree_with_float64(case: Case) -> None:
    want = [oracle(entry, FLAT) for entry in case.entries]
    scale = [oracle(entry, ABSOLUTE) for entry in case.entries]
    assert differences(measured(case.entries).tolist(), want, scale) == []


def test_only_float16_is_left_to_torch() -> None:
    left = {case.name for case in cases()} - {case.name for case in CASES}
    assert left == {"gradient float16", "everything float16"}


def test_the_kernel_has_every_sum() -> None:
    assert numba_kernel.KERNEL_SUMS == SUMS


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_table, "WORTH_THREADS", 1)
    entries = [entry(ADAM, 300_001), entry(ADAM, 5), entry(ADAM, 70_000)]
    alone = measured(entries)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(measured(entries).nan_to_num(7.0), alone.nan_to_num(7.0))


def test_tensors_that_the_kernel_does_not_cover_are_measured_by_torch() -> None:
    strided = entry(ADAM, 200)._replace(grad=torch.randn(400)[::2])
    entries = [entry(ADAM, 700), strided, entry(ADAM, 0), entry(ADAM, 64, of=Tensor.double), entry(ADAM, 40, seed=3)]
    plan = MeasurementPlan(entries)
    (table,) = plan.measure(entries, {CPU: torch.tensor([TERMS] * len(entries), dtype=torch.float64)})
    want = [oracle(entry, FLAT) for entry in entries]
    scale = [oracle(entry, ABSOLUTE) for entry in entries]
    assert differences(table.values.tolist(), want, scale) == []
    assert plan.fits(entries)
    assert not plan.fits([entries[0]._replace(grad=torch.randn(1400)[::2]), *entries[1:]])


def test_a_forked_process_measures_too() -> None:
    entries = [entry(ADAM, 300_000)]
    alone = measured(entries)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert torch.equal(pool.apply(measured, (entries,)).nan_to_num(7.0), alone.nan_to_num(7.0))


def test_a_kernel_that_cannot_be_compiled_is_replaced_by_torch_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(numba_kernel, "sum_chunks", refuse)
    model = nn.Linear(30, 20)
    optimizer = torch.optim.AdamW(model.parameters())
    with caplog.at_level(logging.WARNING, logger="client_sdk"):
        meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
        for _ in range(2):
            model(torch.randn(5, 30)).square().sum().backward()
            optimizer.step()
            found = meter.measure(optimizer, histograms=False)
            assert found is not None
            assert found.totals["grad_norm"] > 0
    (record,) = caplog.records
    assert "no compiler" in record.getMessage()
