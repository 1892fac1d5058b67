"""Parameters that come and go during a training change the layers, without a call by the user."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client_sdk.protocol import Record
from client_sdk.run import Run
from client_sdk.watch import watch
from tests.support.ingest_server import IngestServer
from tests.support.logged import MakeRun

torch.set_num_threads(1)


def small() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, run: Run, steps: range, *, first: bool = False) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).pow(2).mean()
        if first:
            run.log({"loss": loss}, step=step)
        loss.backward()
        optimizer.step()
        if not first:
            run.log({"loss": loss}, step=step)


def layers_of(server: IngestServer, record: Record) -> dict[str, np.ndarray[Any, Any]]:
    """Return the statistics of each layer of a record."""
    layout = next(layout for layout in server.hellos[-1].layouts if layout.id == record.layout)
    assert record.block is not None
    rows = np.frombuffer(record.block, "<f4").reshape(len(layout.layers), len(layout.statistics))
    return dict(zip(layout.layers, rows, strict=True))


@pytest.mark.parametrize("first", [False, True], ids=["log-after-step", "log-before-step"])
def test_a_parameter_group_that_is_added_has_layers(first: bool, make_run: MakeRun, server: IngestServer) -> None:
    model, optimizer = small()
    run = make_run(url=server.url)
    watch(run, model, optimizer, every=1)
    fit(model, optimizer, run, range(3), first=first)
    model.append(nn.Linear(4, 2))
    optimizer.add_param_group({"params": list(model[-1].parameters())})
    fit(model, optimizer, run, range(3, 7), first=first)
    assert run.flush(20)
    found = server.all_records()
    assert run.status().warnings == {}
    assert all(record.block is not None for record in found[:7])
    assert len(server.hellos[-1].layouts) == 2
    grown = found[4 if first else 3 :]
    assert all(np.isfinite(layers_of(server, record)["3.weight"][0]) for record in grown)
    assert all(len(layers_of(server, record)) == 6 for record in grown)


def test_an_unfrozen_layer_and_a_new_adapter_have_layers(make_run: MakeRun, server: IngestServer) -> None:
    model, _ = small()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run = make_run(url=server.url)
    watch(run, model, optimizer, every=1)
    fit(model, optimizer, run, range(2))
    for parameter in model[0].parameters():
        parameter.requires_grad_(True)
    fit(model, optimizer, run, range(2, 4))
    adapted = nn.Sequential(model[2], nn.Linear(4, 4, bias=False))
    model[2] = adapted
    optimizer.add_param_group({"params": list(adapted[1].parameters())})
    fit(model, optimizer, run, range(4, 6))
    assert run.flush(20)
    names = [list(layers_of(server, record)) for record in server.all_records()]
    assert names[1] == ["2.weight", "2.bias"]
    assert names[2] == names[3] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert names[4] == names[5] == ["0.weight", "0.bias", "2.0.weight", "2.0.bias", "2.1.weight"]
    assert run.status().warnings == {}


def test_a_removed_parameter_leaves_the_layers(make_run: MakeRun, server: IngestServer) -> None:
    model, optimizer = small()
    run = make_run(url=server.url)
    watch(run, model, optimizer, every=1)
    fit(model, optimizer, run, range(2))
    del optimizer.param_groups[0]["params"][:2]
    fit(model, optimizer, run, range(2, 4))
    assert run.flush(20)
    names = [list(layers_of(server, record)) for record in server.all_records()]
    assert names[1] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert names[3] == ["2.weight", "2.bias"]


def test_layouts_stay_bounded_and_training_goes_on(make_run: MakeRun) -> None:
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer, every=1)
    extra = nn.Linear(4, 4, bias=False)
    for step in itertools.count():
        if step % 2 == 0:
            model.append(extra)
            optimizer.add_param_group({"params": list(extra.parameters())})
        else:
            del model[3:], optimizer.param_groups[1:]
        fit(model, optimizer, run, range(step, step + 1))
        if "new_parameters" in run.status().warnings:
            break
        assert step < 600
    fit(model, optimizer, run, range(step + 1, step + 4))
    assert dict(run.status().warnings) == {"new_parameters": 1}
    assert run.status().logged == step + 4
