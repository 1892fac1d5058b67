"""The movement of the weights: 16-bit weights, samples of large tensors, and the bound of the snapshot."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from client_sdk.layers import map_layers
from client_sdk.optimizers import kind_of
from client_sdk.stats import Meter, snapshot
from client_sdk.stats.snapshot import SNAPSHOT_BYTES, coprime_stride, strides_of, take_snapshot

Train = Callable[..., Any]


@pytest.mark.parametrize("lr", [1e-5, 1e-3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_reports_what_really_moved(train: Train, dtype: torch.dtype, lr: float) -> None:
    trained = train(lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.0, eps=1e-4), dtype)
    for seed in range(6):
        measurement = trained.step(seed)
    assert trained.column(measurement, "update_norm") == pytest.approx(trained.moved, rel=1e-3, abs=1e-12)
    assert not trained.meter.is_refuted
    for swallowed, parameter, before in zip(
        trained.column(measurement, "swallowed"), trained.model.parameters(), trained.before, strict=True
    ):
        pushed = trained.optimizer.state[parameter]["exp_avg"] != 0
        stuck = pushed & (parameter.detach() == before)
        assert swallowed == pytest.approx(float(stuck.sum() / pushed.sum()), abs=1e-3)
    if lr == 1e-5 and dtype == torch.bfloat16:
        assert max(trained.column(measurement, "swallowed")) > 0.9, "an update far below the rounding of the weights"


def test_a_layer_that_rounding_froze_has_not_moved(train: Train) -> None:
    layer = nn.Linear(6, 4)
    nn.init.constant_(layer.bias, 4.0)
    model = nn.Sequential(layer).bfloat16()
    trained = train(lambda p: torch.optim.AdamW(p, lr=1e-5, weight_decay=0.0), torch.bfloat16, model)
    measurement = trained.step(0)
    assert trained.column(measurement, "update_norm")[1] == 0
    assert trained.column(measurement, "swallowed")[1] == 1


def test_float32_has_no_swallowed(train: Train) -> None:
    assert "swallowed" not in train(torch.optim.AdamW).meter.statistics


@pytest.mark.parametrize("key", ["master_param", "kahan_comp"])
def test_updates_that_the_state_keeps_are_not_lost(train: Train, key: str) -> None:
    trained = train(lambda p: torch.optim.AdamW(p, lr=1e-5), torch.bfloat16)
    trained.step(0)
    for parameter in trained.model.parameters():
        trained.optimizer.state[parameter][key] = parameter.detach().float()
    assert all(map(math.isnan, trained.column(trained.step(1), "swallowed")))


def test_the_average_over_all_starts_is_the_whole_tensor() -> None:
    torch.manual_seed(0)
    parameter = torch.randn(30, 50)
    stride = coprime_stride(7, parameter.shape)
    samples = [take_snapshot([parameter], [stride], turn)[0].before for turn in range(stride)]
    sums = [float(sample.square().sum()) * stride for sample in samples]
    assert sum(sums) / stride == pytest.approx(float(parameter.square().sum()), rel=1e-6)


def test_samples_do_not_follow_the_columns_of_a_matrix() -> None:
    parameter = nn.Parameter(torch.arange(64.0).repeat(4096, 1))  # each column has its own value
    (sample,) = take_snapshot([parameter], strides_of([parameter], 5000), 0)
    assert sample.stride > 1
    counts = torch.bincount(sample.before.to(torch.int64), minlength=64)
    assert counts.min() > 0.9 * counts.float().mean()


@pytest.mark.parametrize(("count", "shape"), [(3, (2048, 1024)), (40, (1024, 1024)), (3000, (128, 129)), (1, (7, 11))])
def test_a_snapshot_is_bounded_for_any_model(count: int, shape: tuple[int, int]) -> None:
    one = torch.zeros(shape)
    strides = strides_of([one] * count)
    assert sum(-(-one.numel() // stride) for stride in strides) * one.element_size() <= SNAPSHOT_BYTES


def test_large_layers_are_estimated_from_their_sample(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "SAMPLES_PER_TENSOR", 4000)
    monkeypatch.setattr(snapshot.strides_of, "__defaults__", (4000,))
    model = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 200))
    trained = train(lambda p: torch.optim.Rprop(p, lr=0.01), model=model)
    for seed in range(3):
        measurement = trained.step(seed)
    found, true = trained.column(measurement, "update_norm"), trained.moved
    assert found[:2] == pytest.approx(true[:2], rel=1e-5), "small ones are measured whole"
    assert found[2] == pytest.approx(true[2], rel=0.05)
    assert found[2] != pytest.approx(true[2], rel=1e-7)


def test_strided_and_complex_weights_are_compared_in_their_own_order() -> None:
    torch.manual_seed(0)
    spectrum = nn.Parameter(torch.randn(5, dtype=torch.complex64))
    kernel = nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    module = nn.ParameterList([spectrum, kernel])
    optimizer = torch.optim.Rprop(module.parameters(), lr=0.01)
    meter = Meter(optimizer, kind_of(optimizer), map_layers(module, optimizer))
    for _ in range(2):
        optimizer.zero_grad()
        (spectrum.abs().square().sum() + kernel.pow(2).sum()).backward()
        before = [p.detach().clone() for p in module]
        meter.before_step(optimizer)
        optimizer.step()
        copied = meter.measure(optimizer, histograms=False)
    assert copied is not None
    block = copied.measurement().block
    assert block is not None
    moved = [float((p.detach() - old).norm()) for p, old in zip(module, before, strict=True)]
    assert block[:, meter.statistics.index("update_norm")] == pytest.approx(moved, rel=1e-5)
