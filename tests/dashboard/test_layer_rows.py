"""Tests of the rows of the heatmap and of the names of layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dashboard.figures.heatmap import heatmap_figure
from dashboard.figures.layer_names import short_names
from dashboard.figures.layer_rows import Row, RowChoice, arranged, extreme_layer, rows_of
from dashboard.figures.marks import Marks
from dashboard.figures.theme import DARK, Frame
from dashboard.models import Heatmap

PARTS = ("ln_1.weight", "attn.c_attn.weight", "attn.c_attn.bias", "mlp.c_proj.weight")
GPT = ("transformer.wte.weight", *(f"transformer.h.{i}.{part}" for i in range(12) for part in PARTS), "lm_head.weight")


def heatmap(layers: tuple[str, ...], values: Any = None, nonfinite: tuple[tuple[int, int, int], ...] = ()) -> Heatmap:
    z = np.ones((len(layers), 6), np.float32) if values is None else np.asarray(values, np.float32)
    return Heatmap(layers=layers, step=tuple(range(0, 10 * z.shape[1], 10)), bucket_steps=10, z=z, nonfinite=nonfinite)


def names(layers: tuple[str, ...], **choice: Any) -> list[str]:
    return [row.name for row in rows_of(layers, heatmap(layers).z, RowChoice(**choice))]


def test_many_layers_are_folded_by_block_in_model_order() -> None:
    blocks = [f"transformer.h.{i}" for i in range(12)]
    assert names(GPT) == ["transformer.wte.weight", *blocks, "lm_head.weight"]
    unfolded = names(GPT, unfolded=("transformer.h.1",))
    assert unfolded[2:8] == ["transformer.h.1", *(f"transformer.h.1.{part}" for part in PARTS), "transformer.h.2"]
    assert names(GPT, order="model") == list(GPT)
    assert names(GPT[:9]) == list(GPT[:9]), "few layers have a row each"


def test_the_leading_layers_are_on_top_by_full_name() -> None:
    leading = ("transformer.h.7.mlp.c_proj.weight", "unknown", "transformer.h.2.ln_1.weight")
    assert names(GPT, leading=leading)[:3] == [leading[0], leading[2], "transformer.wte.weight"]
    figure = heatmap_figure(
        heatmap(GPT), Marks(), Frame(palette=DARK, step_from=0, step_to=60), stat="grad_norm", scale="log",
        choice=RowChoice(leading=leading),
    ).to_dict()  # fmt: skip
    labels = [note["text"] for note in figure["layout"]["annotations"]]
    assert labels[:2] == [leading[0], leading[2]]
    assert "▸ h.3" in [label.replace("transformer.", "") for label in labels]


def test_a_search_leaves_the_layers_with_it_in_their_name() -> None:
    assert names(GPT, search="H.11.ATTN") == [
        "transformer.h.11.attn.c_attn.weight",
        "transformer.h.11.attn.c_attn.bias",
    ]
    frame = Frame(palette=DARK, step_from=0, step_to=60)
    figure = heatmap_figure(
        heatmap(GPT), Marks(), frame, stat="grad_norm", scale="log", choice=RowChoice(search="nothing")
    ).to_dict()
    assert figure["layout"]["annotations"][0]["text"] == "no layer has this in its name"


def test_rows_by_risk_begin_with_the_highest_recent_value() -> None:
    layers = ("a", "b", "c", "d")
    z = [[9, 1, 1], [1, 1, 5], [1, 1, math.nan], [1, 1, 7]]
    rows = rows_of(layers, heatmap(layers, z).z, RowChoice(order="risk"))
    assert [row.name for row in rows] == ["d", "b", "a", "c"]


@pytest.mark.parametrize(("reduce", "kept"), [("max", 50.0), ("last", 50.0), ("min", 0.5)])
def test_a_folded_block_keeps_the_extreme_and_names_its_layer(reduce: str, kept: float) -> None:
    layers = ("h.0.a", "h.0.b", "h.0.c", "end")
    data = heatmap(layers, [[1, 1], [1, 50], [math.nan, 0.5], [2, 2]], nonfinite=((0, 1, 3), (2, 1, 4), (3, 0, 1)))
    rows = [Row(layers=(0, 1, 2), name="h.0", block="h.0", is_folded=True), Row(layers=(3,), name="end")]
    folded = arranged(data, rows, reduce)
    assert folded.z.tolist() == [[1.0, kept], [2.0, 2.0]]
    assert folded.nonfinite == ((0, 1, 7), (1, 0, 1))
    assert extreme_layer(data, "h.0", 15, reduce) == ("h.0.c" if reduce == "min" else "h.0.b")
    assert extreme_layer(data, "end", 15, reduce) == "end"
    assert extreme_layer(data, "h.9", 15, reduce) is None


def test_long_names_lose_what_tells_least_and_stay_distinct() -> None:
    long = ["model.layers.0.self_attn.q_proj.weight", "model.layers.12.mlp.gate_proj.weight", "model.norm.weight"]
    assert short_names(long, 24) == ["l0.self_attn.q_proj.w", "l12.mlp.gate_proj.weight", "model.norm.weight"]
    assert short_names(["blocks.0.norm_attention.weight", "head.weight"], 24)[0] == "b0.norm_attention.weight"
    assert short_names(["x" * 40], 24) == ["x" * 8 + "…" + "x" * 15]
    assert short_names([], 24) == []
    for width in (9, 12, 24):
        shown = short_names(GPT[1:], width)
        assert max(map(len, shown)) <= width
        assert len(set(shown)) == len(GPT) - 1
    assert len(set(short_names(["query.weight", "quiet.weight", "token.weight"], 9))) == 3
