"""The packed table of sums, as a reduction over several processes reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client_sdk.layers import map_layers
from client_sdk.measurement import HostCopy
from client_sdk.optimizers import kind_of
from client_sdk.stats import Meter
from client_sdk.stats.sum_table import SumTable, TablesCopy
from client_sdk.stats.sums import SUM

torch.set_num_threads(1)


class _Sized(nn.Module):
    """Parameters of the given sizes, one of which may be 0."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ParameterList([nn.Parameter(torch.randn(size, dtype=torch.float64)) for size in sizes])


def tables_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[SumTable]:
    seen: list[SumTable] = []

    def note(tables: Sequence[SumTable]) -> HostCopy:
        seen.extend(tables)
        return TablesCopy(tables)

    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer), note)
    optimizer.step()
    assert meter.measure(optimizer, histograms=False) is not None
    return seen


def test_partial_sums_of_shards_add_up_to_those_of_the_whole() -> None:
    whole = _Sized(1000)
    whole.parts[0].grad = torch.randn(1000, dtype=torch.float64)
    sums: list[NDArray[np.float64]] = []
    for start, stop in ((0, 1000), (0, 300), (300, 300), (300, 1000)):
        shard = _Sized(stop - start)
        shard.parts[0].data.copy_(whole.parts[0].data[start:stop])
        shard.parts[0].grad = whole.parts[0].grad[start:stop].clone()
        optimizer = torch.optim.AdamW(shard.parameters(), lr=0.1, eps=0.5)
        (table,) = tables_of(shard, optimizer)
        sums.append(table.values.numpy())
    assert np.isnan(sums[0][0, SUM["ee"]])
    assert 0 < sums[0][0, SUM["below"]] < 1000
    np.testing.assert_allclose(sums[1] + sums[2] + sums[3], sums[0], rtol=1e-12)


def test_rows_name_the_parameter_whatever_has_a_gradient() -> None:
    model = _Sized(3, 5, 0, 7)
    model.parts[1].grad, model.parts[3].grad = torch.ones(5).double(), torch.ones(7).double()
    (table,) = tables_of(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert table.positions.tolist() == [0, 1]
    assert table.parameters.tolist() == [1, 3]
    assert table.values[:, SUM["gg"]].tolist() == [5, 7]


def test_sums_of_tensors_without_elements_are_zero_and_of_unknown_quantities_nan() -> None:
    model = _Sized(0, 4)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    (table,) = tables_of(model, torch.optim.SGD(model.parameters(), lr=0.1))
    empty = dict(zip(SUM, table.values[0].tolist(), strict=True))
    assert {name for name, value in empty.items() if value == 0} == {"gg", "nonfinite", "ww", "uu"}
    assert np.isnan([value for name, value in empty.items() if name not in ("gg", "nonfinite", "ww", "uu")]).all()


def test_sparse_gradients_have_a_row_of_the_same_table() -> None:
    table, dense = nn.Embedding(10, 3, sparse=True), nn.Linear(3, 2)
    model = nn.ModuleList([table, dense])
    dense(table(torch.tensor([1, 1, 4]))).sum().backward()
    (sums,) = tables_of(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert sums.parameters.tolist() == [1, 2, 0]
    assert sums.positions.tolist() == [0, 1, 2]
    assert sums.values[2, SUM["gg"]] > 0
    assert sums.values[2, SUM["ww"]].isnan()
