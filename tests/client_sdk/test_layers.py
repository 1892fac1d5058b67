"""Parameters are mapped to layers by name, module or a function."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from client_sdk import layers
from client_sdk.errors import ConfigurationError
from client_sdk.layers import map_layers
from client_sdk.protocol import MAX_NAME_CHARS


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_each_parameter_is_a_layer_in_the_models_order() -> None:
    model = net()
    found = map_layers(model, sgd(model))
    assert found.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert found.sizes == (12, 4, 8, 2)
    assert [found.row_of[id(p)] for p in model.parameters()] == [0, 1, 2, 3]


def test_a_module_is_a_layer_of_its_parameters() -> None:
    model = net()
    model.register_parameter("scale", nn.Parameter(torch.ones(5)))
    found = map_layers(model, sgd(model), "module")
    assert found.names == ("scale", "0", "2")
    assert found.sizes == (5, 16, 10)


def test_own_grouping_may_leave_layers_out() -> None:
    model = net()
    found = map_layers(model, sgd(model), lambda name: None if name.endswith("bias") else "weights")
    assert found.names == ("weights",)
    assert found.sizes == (20,)
    assert len(found.parameters) == 2


def test_shared_parameters_count_once() -> None:
    model = net()
    first = model[0]
    assert isinstance(first, nn.Linear)
    tied = nn.Linear(3, 4)
    tied.weight = first.weight
    both = nn.ModuleList([model, tied])
    found = map_layers(both, sgd(both))
    assert found.names == ("0.0.weight", "0.0.bias", "0.2.weight", "0.2.bias", "1.bias")


def test_frozen_and_foreign_parameters_are_left_out() -> None:
    model = net()
    first = model[0]
    assert isinstance(first, nn.Linear)
    first.weight.requires_grad_(False)
    found = map_layers(model, torch.optim.SGD([first.weight, first.bias], lr=0.1))
    assert found.names == ("0.bias",)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch.compile uses functions that torch deprecates
def test_names_do_not_depend_on_wrappers() -> None:
    model = net()
    compiled = torch.compile(model)
    assert isinstance(compiled, nn.Module)
    assert map_layers(compiled, sgd(model)).names[0] == "0.weight"
    parallel = nn.DataParallel(model)
    assert map_layers(parallel, sgd(model)).names[0] == "0.weight"


def test_long_names_are_shortened_and_stay_unique() -> None:
    long = "x" * 300
    model = nn.Sequential(OrderedDict({long + "a": nn.Linear(1, 1), long + "b": nn.Linear(1, 1)}))
    names = map_layers(model, sgd(model)).names
    assert len(set(names)) == 4
    assert all(len(name) <= MAX_NAME_CHARS for name in names)


def test_too_many_parameters_are_grouped_by_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MAX_LAYERS", 3)
    model = net()
    found = map_layers(model, sgd(model))
    assert found.names == ("0", "2")
    assert found.grouped == "module"
    with pytest.raises(ConfigurationError, match="4 layers; at most 3"):
        map_layers(model, sgd(model), lambda name: name)


@pytest.mark.parametrize(
    ("model", "other", "group", "message"),
    [
        (net(), net(), "parameter", "shares no parameter"),
        (net().requires_grad_(False), None, "parameter", "frozen"),
        (net(), None, lambda name: None, "left out every parameter"),
        (net(), None, lambda name: 3, "must return a layer name"),
        (net(), None, lambda name: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["no-overlap", "frozen", "nothing-left", "not-a-name", "raises"],
)
def test_unusable_arguments_raise_with_advice(
    model: nn.Module, other: nn.Module | None, group: layers.Group, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        map_layers(model, sgd(model if other is None else other), group)
