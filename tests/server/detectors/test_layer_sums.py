"""Sums over layers: the same to the last bit whatever steps are summed together."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from server.detectors.layer_sums import STATISTICS, layer_sums
from server.models import LayerSums, Layout

STEPS = 40


def columns(layers: int, *, gaps: bool, seed: int) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    found = {name: np.exp(random.normal(0, 4, (STEPS, layers))).astype(np.float32) for name in STATISTICS}
    found["nonfinite"] = random.poisson(0.05, (STEPS, layers)).astype(np.float32)
    if gaps:
        for values in found.values():
            odd = random.random(values.shape)
            values[odd < 0.05] = np.nan
            values[odd > 0.97] = np.inf
            values[random.random(STEPS) < 0.1] = np.nan
    return found


def bits(sums: LayerSums) -> list[object]:
    arrays = [None if array is None else array.tobytes() for array in (sums.squares, sums.known)]
    return [*arrays, *(getattr(sums, name) for name in LayerSums.__struct_fields__ if name not in {"squares", "known"})]


@pytest.mark.parametrize("layers", [1, 7, 8, 9, 48, 129, 300])
@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "gaps"])
@pytest.mark.parametrize("left_out", [(), ("v_rms",), ("grad_norm", "eps_fraction"), ("decoupling", "nonfinite")])
def test_a_step_has_the_same_sums_alone_and_among_others(layers: int, gaps: bool, left_out: tuple[str, ...]) -> None:
    every = {name: values for name, values in columns(layers, gaps=gaps, seed=layers).items() if name not in left_out}
    for sizes in ((), tuple(range(1, layers + 1))):
        layout = Layout(id=0, layers=tuple(f"layer{n}" for n in range(layers)), statistics=(), sizes=sizes)
        together = layer_sums(layout, every)
        alone = [
            layer_sums(layout, {name: values[at : at + 1] for name, values in every.items()}) for at in range(STEPS)
        ]
        assert [bits(sums) for sums in together] == [bits(sums) for (sums,) in alone]


def test_sums_are_those_of_the_layers_that_were_measured() -> None:
    layout = Layout(id=0, layers=("a", "b", "c"), statistics=(), sizes=(1, 2, 3))
    (sums,) = layer_sums(
        layout,
        {
            "grad_norm": np.array([[1.0, np.nan, 2.0]], np.float32),
            "v_rms": np.array([[2.0, 1.0, 1.0]], np.float32),
            "nonfinite": np.array([[0.0, 5.0, np.nan]], np.float32),
            "update_ratio": np.array([[0.5, np.inf, 0.25]], np.float32),
            "eps_fraction": np.array([[1.0, np.nan, 0.0]], np.float32),
        },
    )
    assert sums.square_sum == 5.0
    assert sums.decoupling == 5.0 / (4.0 * 1 + 1.0 * 3)
    assert (sums.nonfinite, sums.guilty) == (5, ("b",))
    assert sums.update_ratio == 0.5
    assert sums.eps_fraction == 0.25
