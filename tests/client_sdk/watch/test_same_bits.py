"""A training that is watched ends in the same bits as one that is not, and its records are complete."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client_sdk.run import Run
from client_sdk.watch import watch
from tests.support.logged import MakeRun, last_layout
from tests.support.logged import kept as records
from tests.support.watched_training import Make, Net, columns_of, small

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks

STEPS = 24


def train(make: Make, steps: int, run: Run | None, *, autocast: bool = False, **watching: Any) -> list[Tensor]:
    """Train and return everything that training leaves behind: parameters, buffers, optimizer state, random state."""
    torch.manual_seed(0)
    model = Net()
    optimizer = make(model.parameters())
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    if run is not None:
        watch(run, model, optimizer, **watching)
    for step in range(steps):
        tokens = torch.randint(12, (6, 5))

        def loss_of(tokens: Tensor = tokens) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                return F.cross_entropy(model(tokens), tokens[:, 0])

        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
        if run is not None:
            run.log({"loss": loss}, step=step, closure=loss_of)
    state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    return [*model.state_dict().values(), *state, torch.get_rng_state()]


@pytest.mark.parametrize(
    ("make", "autocast"),
    [
        (lambda p: torch.optim.AdamW(p, lr=0.01), False),
        (lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True), False),
        (lambda p: torch.optim.Adam(p, lr=0.01, fused=True), False),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), False),
        (lambda p: torch.optim.RMSprop(p, lr=0.01), False),
        (lambda p: torch.optim.Rprop(p, lr=0.01), False),
        (lambda p: torch.optim.AdamW(p, lr=0.01), True),
    ],
    ids=["adamw", "amsgrad-foreach", "adam-fused", "sgd-nesterov", "rmsprop", "unknown", "autocast"],
)
def test_training_ends_in_the_same_bits(
    make: Make, autocast: bool, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = train(make, STEPS, None, autocast=autocast)
    run = make_run()
    watched = train(make, STEPS, run, autocast=autocast, every=1, histogram_every=3, curvature_every=1, budget=math.inf)
    assert len(alone) == len(watched)
    assert all(torch.equal(one, other) for one, other in zip(alone, watched, strict=True))
    is_unknown = isinstance(make([nn.Parameter(torch.ones(1))]), torch.optim.Rprop)
    expected = {"optimizer": 1, "curvature_unsupported": 1} if is_unknown else {}
    assert dict(run.status().warnings) == expected
    found = records(run)
    assert len(found) == STEPS
    if not expected:
        assert sum("lambda_max" in record.scalars for record in found) >= 0.75 * STEPS


def test_records_are_complete(make_run: MakeRun) -> None:
    run = make_run()
    train(lambda p: torch.optim.Adam(p, lr=0.01), 3, run, every=1, histogram_every=2, precision="exact")
    layout = last_layout(run)
    assert "unused" in layout.layers
    assert "frozen" not in layout.layers
    assert layout.optimizer is not None
    assert (layout.optimizer.family, layout.optimizer.beta2, layout.optimizer.lr) == ("adam", 0.999, 0.01)
    found = records(run)
    assert [bool(record.histograms) for record in found] == [True, False, True]
    for record in found:
        assert {"loss", "lr", "grad_norm", "stability_limit"} <= set(record.scalars)
        assert record.scalars["stability_limit"] == pytest.approx(2 / record.scalars["lr"])
        columns = columns_of(record, layout)
        measured = [layout.layers.index(name) for name in layout.layers if name != "unused"]
        assert np.isnan(columns["grad_norm"][layout.layers.index("unused")])
        assert (columns["grad_norm"][measured] >= 0).all()
        total = float(np.sqrt((columns["grad_norm"][measured].astype(np.float64) ** 2).sum()))
        assert record.scalars["grad_norm"] == pytest.approx(total, rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile uses functions that torch deprecates
def test_compiled_models_and_optimizers_are_measured_and_not_disturbed(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:

    def run_once(run: Run | None) -> list[Tensor]:
        model, optimizer = small()
        compiled = torch.compile(model, backend="aot_eager")
        assert isinstance(compiled, nn.Module)
        step_once = torch.compile(optimizer.step, backend="aot_eager")
        x = torch.randn(8, 4)
        if run is not None:
            watch(run, compiled, optimizer, curvature_every=1, budget=math.inf)
        for step in range(6):
            optimizer.zero_grad()
            loss = compiled(x).pow(2).mean()
            loss.backward()
            step_once()
            if run is not None:
                run.log({"loss": loss}, step=step, closure=lambda: compiled(x).pow(2).mean())
        return [parameter.detach() for parameter in model.parameters()]

    alone = run_once(None)
    run = make_run()
    watched = run_once(run)
    assert all(torch.equal(one, other) for one, other in zip(alone, watched, strict=True))
    found = records(run)
    assert all(record.block is not None for record in found)
    assert sum("lambda_max" in record.scalars for record in found) == 6
    assert run.status().warnings == {}
