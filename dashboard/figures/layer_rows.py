"""The rows of the heatmap: the leading layers on top, then layers and blocks in model order or by risk. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from dashboard.figures.layer_names import block_of
from dashboard.models import Heatmap

MAX_LAYERS: Final = 28
"""Number of layers up to which every layer has its row by default."""
MAX_PINNED: Final = 3
RECENT_SHARE: Final = 0.05
"""Share of the newest columns by which rows are sorted by risk."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the heatmap."""

    layers: tuple[int, ...]
    """Numbers of the layers in it, at least one; a folded block has several."""
    name: str
    """Full name of the layer, or name of the block."""
    block: str = ""
    """Block that a click on the label folds or unfolds; empty for none."""
    is_folded: bool = False
    """Whether the row stands for the layers of its block."""
    is_pinned: bool = False
    """Whether the row repeats a leading layer above the others."""
    inside: bool = False
    """Whether the row is a layer of an unfolded block, whose label then need not repeat the block."""


@dataclass(frozen=True, kw_only=True)
class RowChoice:
    """The choice of rows and of their order."""

    order: str = ""
    """"model" for every layer in model order, "risk" for the highest recent values first, "" for folded blocks where
    there are many layers."""
    search: str = ""
    """Part of a name, in any case; only layers with it have rows."""
    unfolded: Collection[str] = ()
    """Blocks whose layers have rows of their own."""
    leading: Sequence[str] = ()
    """Layers that lead the growth, the largest contributor first."""


def rows_of(layers: Sequence[str], values: NDArray[np.float32], choice: RowChoice) -> list[Row]:
    """Return the rows. ``values``: the values of the layers, shape (layers, columns), by which risk is sorted."""
    wanted = choice.search.strip().lower()
    found = [number for number, name in enumerate(layers) if wanted in name.lower()]
    single = [Row(layers=(number,), name=layers[number]) for number in found]
    if wanted:
        return single
    places = {name: number for number, name in reversed(list(enumerate(layers)))}
    pinned = [
        Row(layers=(places[name],), name=name, is_pinned=True) for name in choice.leading[:MAX_PINNED] if name in places
    ]
    if len(pinned) >= len(layers) or len(layers) <= MAX_PINNED + 1:
        pinned = []
    if choice.order == "risk":
        return pinned + _by_risk(single, values)
    if choice.order == "model" or len(layers) <= MAX_LAYERS:
        return pinned + single
    return pinned + _by_block(layers, choice.unfolded)


def arranged(data: Heatmap, rows: Sequence[Row], reduce: str) -> Heatmap:
    """Return the heatmap with these rows. A folded block keeps the extreme of its layers: the lowest value if
    ``reduce`` is "min", otherwise the highest."""
    if not rows:
        return msgspec.structs.replace(data, layers=(), z=np.empty((0, data.z.shape[1]), np.float32), nonfinite=())
    pick = np.fmin if reduce == "min" else np.fmax
    z = np.stack([pick.reduce(data.z[list(row.layers)], axis=0) for row in rows])
    rows_with: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        for layer in row.layers:
            rows_with.setdefault(layer, []).append(number)
    counts: dict[tuple[int, int], int] = {}
    for layer, column, count in data.nonfinite:
        for number in rows_with.get(layer, ()):
            counts[number, column] = counts.get((number, column), 0) + count
    return msgspec.structs.replace(
        data,
        layers=tuple(row.name for row in rows),
        z=z,
        nonfinite=tuple((row, column, count) for (row, column), count in counts.items()),
    )


def extreme_layer(data: Heatmap, name: str, step: int, reduce: str) -> str | None:
    """Return the layer of this name, or the layer of the block of this name with the extreme at a step; else None."""
    if name in data.layers:
        return name
    members = [number for number, layer in enumerate(data.layers) if block_of(layer) == name]
    if not members or not data.step:
        return None
    column = max(int(np.searchsorted(np.asarray(data.step), step, side="right")) - 1, 0)
    values = data.z[members, column].astype(np.float64)
    if np.isnan(values).all():
        return data.layers[members[0]]
    return data.layers[members[int(np.nanargmin(values) if reduce == "min" else np.nanargmax(values))]]


def _by_block(layers: Sequence[str], unfolded: Collection[str]) -> list[Row]:
    """Return one row for each block, and the layers below it if it is unfolded; other layers have their own row."""
    members: dict[str, list[int]] = {}
    for number, name in enumerate(layers):
        members.setdefault(block_of(name) or name, []).append(number)
    rows: list[Row] = []
    for name, numbers in members.items():
        if len(numbers) == 1:
            rows.append(Row(layers=(numbers[0],), name=layers[numbers[0]]))
            continue
        is_open = name in unfolded
        rows.append(Row(layers=tuple(numbers), name=name, block=name, is_folded=not is_open))
        if is_open:
            rows += [Row(layers=(number,), name=layers[number], block=name, inside=True) for number in numbers]
    return rows


def _by_risk(rows: list[Row], values: NDArray[np.float32]) -> list[Row]:
    columns = values.shape[1]
    if not columns:
        return rows
    measured = np.flatnonzero(~np.isnan(values).all(axis=0))
    recent = measured[-max(1, round(RECENT_SHARE * measured.size)) :] if measured.size else np.arange(columns)
    highest = np.fmax.reduce(values[:, recent], axis=1)
    return sorted(rows, key=lambda row: -float(np.nan_to_num(highest[row.layers[0]], nan=-np.inf)))
