"""The rhythm of the layer statistics is said in `status` and in the records."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from client_sdk.watch import rhythm, watch
from tests.support.logged import MakeRun, alert
from tests.support.logged import kept as records

torch.set_num_threads(1)


def train(run: object, optimizer: torch.optim.Optimizer, model: nn.Module, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).pow(2).mean()
        loss.backward()
        optimizer.step()
        run.log({"loss": loss}, step=step)  # type: ignore[attr-defined]


def test_the_status_says_what_is_measured_how_often(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rhythm, "SHARE", 1e-9)  # nothing is affordable, on a machine of any speed
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    run = make_run()
    assert run.status().watch == ()
    watch(run, model, optimizer, budget=math.inf)
    train(run, optimizer, model, range(10))
    (status,) = run.status().watch
    assert status.is_dense
    assert str(status).startswith("layers: every step, ")
    train(run, optimizer, model, range(10, 400))
    (status,) = run.status().watch
    assert status.is_automatic
    if not status.is_dense:
        assert str(status).startswith("layers: every 16th step, ")
    assert status.share > 0
    run.inbox.receive(alert(1))
    train(run, optimizer, model, range(400, 402))
    assert run.status().watch[0].is_dense, "an alert of the server makes the rhythm dense"
    found = records(run)
    said = [record for record in found if "watch_every" in record.scalars]
    assert said[0].step == 0
    assert {1.0, 16.0} <= {record.scalars["watch_every"] for record in said}
    assert all(record.scalars["watch_share"] >= 0 for record in said)
    assert len([record for record in found if record.block is not None]) < 300


def test_a_number_is_said_too(make_run: MakeRun) -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = make_run()
    watch(run, model, optimizer, every=3)
    train(run, optimizer, model, range(20))
    (status,) = run.status().watch
    assert str(status).startswith("layers: every 3rd step, ")
    assert not status.is_automatic
    assert not any("watch_every" in record.scalars for record in records(run))
