"""Statistics agree with simple float64 formulas on copies taken before and after a real optimizer step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client_sdk.host import ScalarCopy
from client_sdk.layers import map_layers
from client_sdk.measurement import Measurement
from client_sdk.optimizers import kind_of
from client_sdk.protocol import HISTOGRAM_BINS
from client_sdk.stats import Meter, histograms, host_table, measurement_plan
from client_sdk.stats.histograms import count_bins
from client_sdk.warner import Warner

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks

Make = Callable[[Iterable[Any]], torch.optim.Optimizer]
Values = NDArray[np.float64]

ADAMS: dict[str, Make] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adam-tensor-lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "adam-large-eps": lambda p: torch.optim.Adam(p, lr=0.01, eps=0.02, betas=(0.8, 0.95)),
    "adam-l2": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.3),
    "adam-maximize": lambda p: torch.optim.Adam(p, lr=0.01, maximize=True),
    "adam-maximize-l2": lambda p: torch.optim.Adam(p, lr=0.01, maximize=True, weight_decay=0.1),
    "adam-no-momentum": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.99)),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, betas=(0.9, 0.5)),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5),
    "adamw-amsgrad-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, foreach=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "nadam-l2": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.2),
    "nadam-decoupled": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.2, decoupled_weight_decay=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "radam-short": lambda p: torch.optim.RAdam(p, lr=0.01, betas=(0.9, 0.9)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "rmsprop-l2": lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.2, maximize=True),
    "rmsprop-momentum": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
}
OTHERS: dict[str, Make] = {
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "sgd-l2": lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.3, maximize=True),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "sgd-ema": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.9),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, foreach=False),
    "sgd-nesterov-foreach": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, foreach=True),
    "sgd-nesterov-l2": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd-nesterov-fused": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, fused=True),
}


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3)).to(dtype)


def backward(model: nn.Module, step: int, dtype: torch.dtype = torch.float64) -> None:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 6, generator=generator, dtype=dtype)
    model.zero_grad()
    (model(x) ** 2).mean().backward()


def trained(
    make: Make, steps: int, dtype: torch.dtype = torch.float64, group: str = "parameter"
) -> tuple[nn.Sequential, torch.optim.Optimizer, Meter, Measurement, dict[str, Any]]:
    """Train and return the model, optimizer, meter, measurement of the last step, and the state before that step."""
    model = net(dtype)
    optimizer = make(model.parameters())
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer, group))
    before: dict[str, Any] = {}
    for step in range(steps):
        backward(model, step, dtype)
        before = {
            "weights": [p.detach().clone() for p in model.parameters()],
            "grads": [p.grad.clone() for p in model.parameters() if p.grad is not None],
            "state": [copy.deepcopy(dict(optimizer.state.get(p, {}))) for p in model.parameters()],
        }
        meter.before_step(optimizer)
        optimizer.step()
    copied = meter.measure(optimizer, histograms=True)
    assert copied is not None
    assert copied.ready()
    return model, optimizer, meter, copied.measurement(), before


def expected(model: nn.Module, optimizer: torch.optim.Optimizer, before: dict[str, Any]) -> list[dict[str, float]]:
    """Return the statistics of each tensor, computed from copies with the actual Δw."""
    group = optimizer.param_groups[0]
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    is_decoupled = bool(group.get("decoupled_weight_decay"))
    rows = []
    for parameter, w0, g, old in zip(
        model.parameters(), before["weights"], before["grads"], before["state"], strict=True
    ):
        state = optimizer.state.get(parameter, {})
        w1 = parameter.detach()
        moved = w1 - w0
        u = -(moved + lr * decay * w0) / lr if is_decoupled else -moved / lr
        e = -g if group["maximize"] else g
        e = e if is_decoupled else e + decay * w0
        row = {
            "grad_norm": float(g.norm()),
            "weight_norm": float(w1.norm()),
            "update_norm": float(moved.norm()),
            "update_ratio": float(moved.norm() / w1.norm()),
            "nonfinite": 0.0,
            "u_rms": float((u**2).mean().sqrt()),
        }
        key = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq" if "exp_avg_sq" in state else "square_avg"
        if key in state:
            eps = group["eps"]
            correction = 1.0 if key == "square_avg" else 1 - group["betas"][1] ** float(state["step"])
            v_hat = state[key] / correction
            root = state[key].sqrt() if isinstance(optimizer, torch.optim.RAdam) else v_hat.sqrt()
            row["v_rms"] = math.sqrt(float(v_hat.mean()))
            row["decoupling"] = float((e**2).sum() / v_hat.sum())
            row["eps_fraction"] = float((root < eps).double().mean())
            floor = eps**2 / (correction if isinstance(optimizer, torch.optim.RAdam) else 1.0)
            row["rms_ratio"] = math.sqrt(float((e**2 / torch.clamp(v_hat, min=floor)).mean()))
        past = old.get("exp_avg", old.get("momentum_buffer"))
        if past is not None:
            row["grad_momentum_cosine"] = float((e * past).sum() / (e.norm() * past.norm()))
        rows.append(row)
    return rows


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", [*ADAMS, *OTHERS])
def test_statistics_equal_the_obvious_formulas(name: str, steps: int) -> None:
    model, optimizer, meter, measurement, before = trained({**ADAMS, **OTHERS}[name], steps)
    assert measurement.block is not None
    for row, wanted in zip(measurement.block, expected(model, optimizer, before), strict=True):
        measured = dict(zip(meter.statistics, row.tolist(), strict=True))
        for statistic, value in measured.items():
            if statistic == "grad_momentum_cosine":
                if steps == 1 and name != "sgd-ema":
                    assert math.isnan(value), "the first step has no earlier momentum"
                elif steps > 1 and name != "adam-no-momentum":
                    assert value == pytest.approx(wanted[statistic], abs=1e-5)
            elif statistic == "period_two":
                assert math.isnan(value), "no successive steps were followed"
            else:
                assert value == pytest.approx(wanted[statistic], rel=1e-6, abs=1e-12), statistic


@pytest.mark.parametrize("has_kernel", [True, False])
@pytest.mark.parametrize("name", ADAMS)
def test_float32_and_small_chunks_agree_with_float64(
    name: str, has_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_table, "is_available", lambda: has_kernel)
    monkeypatch.setattr(measurement_plan, "PACK_CPU", 100)
    monkeypatch.setattr(measurement_plan, "CHUNK_CPU", 64)
    model, optimizer, meter, measurement, before = trained(ADAMS[name], 5, torch.float32)
    assert measurement.block is not None
    before["weights"] = [w.double() for w in before["weights"]]
    for row, wanted in zip(measurement.block, expected(model.double(), optimizer, before), strict=True):
        for statistic, value in zip(meter.statistics, row.tolist(), strict=True):
            if statistic in wanted and statistic != "grad_momentum_cosine":
                assert value == pytest.approx(wanted[statistic], rel=3e-3, abs=1e-6), statistic


def test_statistics_that_need_a_second_moment_are_absent_for_sgd() -> None:
    model = net()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    meter = Meter(plain, kind_of(plain), map_layers(model, plain))
    assert meter.statistics == ("grad_norm", "weight_norm", "update_norm", "update_ratio", "period_two", "nonfinite")
    heavy = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert "grad_momentum_cosine" in Meter(heavy, kind_of(heavy), map_layers(model, heavy)).statistics


def test_unknown_optimizers_have_only_what_needs_no_state() -> None:
    model = net()
    optimizer = torch.optim.Rprop(model.parameters())
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    assert meter.statistics == ("grad_norm", "weight_norm", "update_norm", "update_ratio", "period_two", "nonfinite")
    backward(model, 0)
    before = [p.detach().clone() for p in model.parameters()]
    meter.before_step(optimizer)
    optimizer.step()
    copied = meter.measure(optimizer, histograms=True)
    assert copied is not None
    measurement = copied.measurement()
    assert measurement.block is not None
    moved = [float((p.detach() - old).norm()) for p, old in zip(model.parameters(), before, strict=True)]
    assert measurement.block[:, 2] == pytest.approx(moved, rel=1e-6)
    assert measurement.histograms == ()


def test_parameter_groups_keep_their_own_settings() -> None:
    model = net()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters[:2], "lr": 0.1, "weight_decay": 0.0, "betas": (0.5, 0.9)},
            {"params": parameters[2:], "lr": 0.01, "weight_decay": 0.5, "eps": 1e-3},
        ]
    )
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    before: list[Tensor] = []
    for step in range(4):
        backward(model, step)
        before = [p.detach().clone() for p in parameters]
        optimizer.step()
    copied = meter.measure(optimizer, histograms=False)
    assert copied is not None
    block = copied.measurement().block
    assert block is not None
    moved = [float((p.detach() - old).norm()) for p, old in zip(parameters, before, strict=True)]
    assert block[:, meter.statistics.index("update_norm")] == pytest.approx(moved, rel=1e-6)


def test_modules_sum_over_their_parameters() -> None:
    _, _, _, by_parameter, _ = trained(ADAMS["adam"], 3)
    _, _, meter, by_module, _ = trained(ADAMS["adam"], 3, group="module")
    assert by_parameter.block is not None
    assert by_module.block is not None
    assert meter.layers.names == ("0", "2")
    for statistic in ("grad_norm", "weight_norm", "update_norm"):
        column = meter.statistics.index(statistic)
        fine = by_parameter.block[:, column].astype(np.float64) ** 2
        assert by_module.block[:, column] ** 2 == pytest.approx([fine[0] + fine[1], fine[2] + fine[3]], rel=1e-5)


def test_total_gradient_norm_is_a_scalar() -> None:
    _, _, _, measurement, before = trained(ADAMS["adamw"], 3)
    total = math.sqrt(sum(float((g**2).sum()) for g in before["grads"]))
    assert measurement.scalars["grad_norm"] == pytest.approx(total, rel=1e-9)


def test_a_parameter_without_gradient_is_not_measured() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    assert meter.measure(optimizer, histograms=False) is None
    backward(model, 0)
    model[2].bias.grad = None
    optimizer.step()
    copied = meter.measure(optimizer, histograms=True)
    assert copied is not None
    measurement = copied.measurement()
    assert measurement.block is not None
    assert np.isnan(measurement.block[3]).all()
    finite = np.isfinite(measurement.block[:3])
    assert finite[:, [meter.statistics.index("grad_norm"), meter.statistics.index("v_rms")]].all()


def test_nonfinite_gradients_are_counted_and_stay_in_their_layer() -> None:
    model = net(torch.float32)
    optimizer = torch.optim.Adam(model.parameters())
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    backward(model, 0, torch.float32)
    grad = next(model.parameters()).grad
    assert grad is not None
    grad[0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    optimizer.step()
    copied = meter.measure(optimizer, histograms=True)
    assert copied is not None
    measurement = copied.measurement()
    assert measurement.block is not None
    assert measurement.block[:, meter.statistics.index("nonfinite")].tolist() == [3, 0, 0, 0]
    assert math.isnan(measurement.block[0, 0])
    assert np.isfinite(measurement.block[1:, 0]).all()


def test_sparse_gradients_are_tolerated_with_a_word() -> None:
    embedding = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    warner = Warner()
    meter = Meter(optimizer, kind_of(optimizer), map_layers(embedding, optimizer), warner=warner)
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    optimizer.step()
    copied = meter.measure(optimizer, histograms=True)
    assert copied is not None
    block = copied.measurement().block
    assert block is not None
    assert block[0, 0] == pytest.approx(math.sqrt(4 * 4 + 4))
    assert block[0, meter.statistics.index("nonfinite")] == 0
    assert math.isnan(block[0, meter.statistics.index("update_norm")])
    assert warner.counts == {"sparse_gradients": 1}


def test_complex_half_and_strided_parameters_are_measured() -> None:
    spectrum = nn.Parameter(torch.randn(5, dtype=torch.complex64))
    small = nn.Parameter(torch.randn(7).bfloat16())
    kernel = nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    module = nn.ParameterList([spectrum, small, kernel])
    optimizer = torch.optim.Adam(module.parameters(), foreach=False)
    meter = Meter(optimizer, kind_of(optimizer), map_layers(module, optimizer))
    for _ in range(2):
        optimizer.zero_grad()
        (spectrum.abs().sum() + small.float().pow(2).sum() + kernel.pow(2).sum()).backward()
        meter.before_step(optimizer)
        optimizer.step()
    copied = meter.measure(optimizer, histograms=True)
    assert copied is not None
    measurement = copied.measurement()
    assert measurement.block is not None
    swallowed, period_two = meter.statistics.index("swallowed"), meter.statistics.index("period_two")
    assert np.isfinite(np.delete(measurement.block, [swallowed, period_two], axis=1)).all()
    assert np.isfinite(measurement.block[:, swallowed]).tolist() == [False, True, False], "only for bfloat16"
    assert measurement.block[0, 0] == pytest.approx(math.sqrt(5), rel=1e-5)
    assert meter.layers.sizes == (10, 7, 48)


def test_step_skipped_inside_a_fused_kernel_is_not_measured() -> None:
    model = net(torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    backward(model, 0, torch.float32)
    setattr(optimizer, "found_inf", torch.ones(1))  # noqa: B010 - set like GradScaler does for a fused optimizer
    copied = meter.measure(optimizer, histograms=False)
    assert copied is not None
    block = copied.measurement().block
    assert block is not None
    assert np.isnan(block[:, 0]).all()
    assert (block[:, meter.statistics.index("nonfinite")] == 0).all()


def test_histograms_count_every_number_of_small_layers() -> None:
    model, _, meter, measurement, before = trained(ADAMS["adam"], 4)
    by_name = {found.which: found for found in measurement.histograms}
    assert set(by_name) == {"update", "ratio"}
    for found in by_name.values():
        counts = np.frombuffer(found.counts, "<u4").reshape(-1, HISTOGRAM_BINS)
        assert counts.sum(1).tolist() == list(meter.layers.sizes)
    low, high = (np.frombuffer(getattr(by_name["update"], end), "<f4") for end in ("low", "high"))
    assert (low == -high).all()
    counts = np.frombuffer(by_name["update"].counts, "<u4").reshape(-1, HISTOGRAM_BINS)
    for row, (parameter, w0) in enumerate(zip(model.parameters(), before["weights"], strict=True)):
        u = ((w0 - parameter.detach()) / 0.01).flatten().numpy().astype(np.float64)
        edges = np.linspace(low[row], high[row], HISTOGRAM_BINS + 1)
        wanted, _ = np.histogram(np.clip(u, edges[0], edges[-1]), edges)
        assert np.abs(wanted.astype(int) - counts[row]).sum() <= 4, "only values on the edge of a bin may differ"


def test_bins_hold_outliers_and_leave_out_nan() -> None:
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([[0.0, 1.0, -1.0, inf], [-inf, nan, nan, nan], [0.0, 0.0, 0.0, 0.0], [nan, nan, nan, nan]])
    bins = count_bins(values, torch.tensor([1, 1, 0, 2]), 3)
    constant, mixed, empty = bins[0], bins[1], bins[2]
    assert float(mixed[0]) == 1.0
    assert mixed[1:].nonzero().flatten().tolist() == [0, HISTOGRAM_BINS // 2, HISTOGRAM_BINS - 1]
    assert float(mixed[1]) == 2
    assert float(mixed[-1]) == 2
    assert constant[1 + HISTOGRAM_BINS // 2] == 4
    assert float(empty[1:].sum()) == 0


def test_large_layers_are_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histograms, "SAMPLES_PER_LAYER", 100)
    monkeypatch.setattr(histograms, "SAMPLES_AT_ONCE_CPU", 300)
    _, _, meter, measurement, _ = trained(ADAMS["adam"], 3)
    for found in measurement.histograms:
        counts = np.frombuffer(found.counts, "<u4").reshape(-1, HISTOGRAM_BINS).sum(1)
        assert meter.layers.sizes == (240, 40, 120, 3)
        assert counts.tolist() == [80, 40, 60, 3]


def test_copies_keep_the_value_at_their_start() -> None:
    first, second = torch.tensor(1.5), torch.tensor([2], dtype=torch.int64)
    copied = ScalarCopy([first, second])
    first += 1
    assert copied.ready()
    assert copied.array().tolist() == [1.5, 2.0]
